"""How large records will be, from the headers of their files: what sorts them into buckets.

Read by threads with a process each, since a file that hangs or crashes a reader costs one record.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from vr1_jax.data.encode import Encoder
from vr1_jax.data.frames import MediaError
from vr1_jax.data.probe import Prober, grid
from vr1_jax.data.prompts import encode_prompt
from vr1_jax.data.records import RecordError
from vr1_jax.data.sources import Kind, Records, kind_of

UNKNOWN = -1
AT_ONCE = 256  # records given to the threads before the first is waited for


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
    with ExitStack() as stack:
        probers = deque(stack.enter_context(Prober(encoder.geometry.unit)) for _ in range(workers))

        def work(number: int) -> tuple[Kind, tuple[int, int, int]] | str:
            prober = probers.popleft()  # as many probers as threads: there is always one
            try:
                return _measure_one(records, number, encoder, prober)
            except RecordError as error:
                return "path" if error.field == "path" else "record"
            except MediaError as error:
                return error.reason
            finally:
                probers.append(prober)

        for number, result in zip(numbers, _in_order(work, numbers, workers), strict=True):
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


def _in_order(work: Callable, items: Iterable, workers: int) -> Iterable:
    """As `Executor.map`, which would queue all 260,000 items at once."""
    pool, pending = ThreadPoolExecutor(workers), deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > AT_ONCE:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
