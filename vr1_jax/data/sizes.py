"""How large records will be, from the headers of their files: what sorts them into buckets.

Read by threads with a process each, since a file that hangs or crashes a reader costs one record.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from vr1_jax.data.ahead import work_ahead
from vr1_jax.data.encode import Encoder
from vr1_jax.data.prompts import encode_prompt
from vr1_jax.data.records import RecordError
from vr1_jax.data.sources import Kind, Records, kind_of
from vr1_jax.media.frames import MediaError
from vr1_jax.media.probe import Prober, grid

UNKNOWN = -1
AHEAD = 256  # of 260,000 records: small things, but not all at once


@dataclass(frozen=True)
class Sizes:
    """Slices, patches in a slice and prompt tokens of each record; UNKNOWN of bad ones and of others."""

    table: np.ndarray  # [N, 3] int32
    kinds: dict[int, Kind]  # of the records whose size is known
    refused: Counter[str]  # reasons of the others


def measure(
    records: Records,
    numbers: Sequence[int],
    encoder: Encoder,
    *,
    workers: int,
    progress: Callable[[], object] = lambda: None,
) -> Sizes:
    """The sizes of some records, as `encoder` will make them; `progress` is called after each."""
    found = Sizes(np.full((len(records), 3), UNKNOWN, np.int32), {}, Counter())
    encoder.tokenizer.encode_text("")  # the first call sets the tokenizer's options, before threads use it

    def work(number: int, prober: Prober) -> tuple[Kind, tuple[int, int, int]] | str:
        try:
            return _measure_one(records, number, encoder, prober)
        except RecordError as error:
            return "path" if error.field == "path" else "record"
        except MediaError as error:
            return error.reason

    with ExitStack() as stack:
        probers = [stack.enter_context(Prober(encoder.geometry.unit)) for _ in range(workers)]
        for number, result in zip(numbers, work_ahead(work, numbers, probers, AHEAD), strict=True):
            if isinstance(result, str):
                found.refused[result] += 1
            else:
                found.kinds[int(number)], found.table[number] = result
            progress()
    return found


def _measure_one(
    records: Records, number: int, encoder: Encoder, prober: Prober
) -> tuple[Kind, tuple[int, int, int]]:
    source, index = records.locate(number)
    sample = source.records[index]
    slices = rows = columns = 0
    if sample.data_type != "text":
        budget = encoder.image_budget if sample.data_type == "image" else encoder.frame_budget
        shape = prober(sample.data_type, sample.media(source.media_root), budget)
        slices, rows, columns = grid(shape, encoder.geometry)
    units = slices * rows * columns // encoder.geometry.merge**2
    tokens = len(encode_prompt(sample, encoder.tokenizer, units, encoder.style))
    return kind_of(sample), (slices, rows * columns, tokens)
