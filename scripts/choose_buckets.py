"""Chooses the few shapes that training compiles, from the sizes of the data, and prints them for the config.

python scripts/choose_buckets.py --records train.json --media-root media --model DIR --count 3

Sizes are read from file headers, of a sample of the records. With --sizes they are read of all records and kept:
training, which reads them itself where a kind (image, video, text) has more than one bucket, starts sooner.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vr1_jax.arguments import Budgets, check_at_least, check_directory
from vr1_jax.command_line import run_command
from vr1_jax.data.collate import Bucket
from vr1_jax.data.sources import KINDS, PATCH_COST, Kind, cost
from vr1_jax.errors import UsageError

MAX_CANDIDATES = 150  # distinct shapes that are compared pair by pair


@dataclass(frozen=True, kw_only=True)
class Arguments(Budgets):
    records: Path  # JSON list or JSON lines
    media_root: Path  # directory that the records' paths are relative to
    model: Path  # Hugging Face, converted or run directory
    count: int = 3  # how many shapes
    prompt: Literal["fixed", "upstream"] = "fixed"  # whose words around a question
    max_tokens: int | None = None  # leave longer prompts out: training will refuse them
    sample: int = 1000  # how many records to look at
    seed: int = 0  # which ones
    sizes: Path | None = None  # look at all records and write their sizes to this .npy file
    force: bool = False  # replace --sizes

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, self, "count", "sample")
        check_at_least(0, self, "seed")

    @property
    def out(self) -> Path | None:
        return self.sizes


def main(arguments: list[str] | None = None) -> int:
    return run_command("choose_buckets", choose, Arguments, arguments, __doc__)


def choose(chosen: Arguments) -> int:
    check_directory("--media-root", chosen.media_root)
    frames, images = chosen.budgets()
    from vr1_jax.data.encode import Encoder
    from vr1_jax.data.prompts import prompt_style
    from vr1_jax.data.record_file import RecordFile
    from vr1_jax.data.records import RecordError
    from vr1_jax.data.sources import Records, Source
    from vr1_jax.data.tokenizer import load_tokenizer
    from vr1_jax.files import check_output_file, whole_file
    from vr1_jax.weights.checkpoint_dir import assets_directory

    if chosen.sizes is not None:
        check_output_file(chosen.sizes, force=chosen.force, inputs=(chosen.records,))
    tokenizer, style = load_tokenizer(assets_directory(chosen.model)), prompt_style(chosen.prompt, "sft")
    encoder = Encoder(tokenizer, frames, images, style=style)
    sizes = look(Records([Source(RecordFile(chosen.records), chosen.media_root)]), chosen, encoder)
    by_kind = split(sizes, chosen.max_tokens)
    print_histogram(by_kind, sizes.refused)
    if not any(map(len, by_kind.values())):
        raise RecordError("none of the records looked at can be used", file=str(chosen.records))
    if chosen.sizes is not None:
        with whole_file(chosen.sizes) as file:
            np.save(file.buffer, sizes.table)
    try:
        print_choice(choose_buckets(by_kind, chosen.count), chosen)
    except ValueError as error:
        raise UsageError(f"--count: {error}") from None
    return 0


def look(records, chosen, encoder):
    from tqdm import tqdm

    from vr1_jax.data.ahead import cpu_count
    from vr1_jax.data.sizes import measure

    numbers = np.arange(len(records))
    if chosen.sizes is None and len(records) > chosen.sample:
        numbers = np.sort(np.random.default_rng(chosen.seed).permutation(len(records))[: chosen.sample])
    with tqdm(total=len(numbers), unit="record", disable=None if sys.stderr.isatty() else True) as bar:
        return measure(records, numbers.tolist(), encoder, workers=cpu_count(), progress=bar.update)


def split(sizes, max_tokens):
    """The sizes of each kind; prompts above `max_tokens` are counted as refused."""
    by_kind = {}
    for kind in KINDS:
        found = sizes.table[[number for number, its in sizes.kinds.items() if its == kind]]
        if max_tokens is not None:
            sizes.refused["too_long"] += int((found[:, 2] > max_tokens).sum())
            found = found[found[:, 2] <= max_tokens]
        by_kind[kind] = found
    return by_kind


class Choice(NamedTuple):
    """Buckets by kind, and what they cost: `waste` is the share of the computation that goes to padding."""

    buckets: Mapping[Kind, tuple[Bucket, ...]]
    waste: float


def choose_buckets(
    sizes: Mapping[Kind, np.ndarray], count: int, *, patch_step: int = 16, token_step: int = 64
) -> Choice:
    """About the best `count` buckets, shared among the kinds, for sizes [N, 3] (slices, patches, tokens).

    Sizes are rounded up to the steps, which leaves room for what a sample of the data missed. Then, as long as
    there are too many, those two buckets of a kind become one whose union costs least.
    """
    sizes = {kind: array for kind, array in sizes.items() if len(array)}
    if count < len(sizes):
        raise ValueError(f"{count} buckets for {len(sizes)} kinds of records; each kind needs one")
    shapes, counts, kinds = [], [], []
    for kind, array in sizes.items():
        distinct, numbers = round_up(array, patch_step, token_step)
        shapes.append(distinct)
        counts.append(numbers)
        kinds.append(np.full(len(distinct), KINDS.index(kind)))
    shapes, counts, kinds = map(np.concatenate, (shapes, counts, kinds))
    while len(shapes) > count:
        shapes, counts, kinds = merge_cheapest(shapes, counts, kinds)
    buckets = {
        kind: tuple(sorted((Bucket(*row.tolist()) for row in shapes[kinds == KINDS.index(kind)]), key=cost))
        for kind in sizes
    }
    return Choice(buckets, waste_of(sizes, buckets))


def round_up(sizes: np.ndarray, patch_step: int, token_step: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct sizes after rounding up, coarsely enough that there are not too many, and how often each occurs."""
    steps = np.array([1, patch_step, token_step])
    while True:
        distinct, counts = np.unique(-(-sizes // steps) * steps, axis=0, return_counts=True)
        if len(distinct) <= MAX_CANDIDATES:
            return distinct, counts
        # Double the finest step in relation to what it measures.
        steps[np.argmax(sizes.max(axis=0) / steps)] *= 2


def costs_of(shapes: np.ndarray) -> np.ndarray:
    return shapes[..., 2] + PATCH_COST * shapes[..., 0] * shapes[..., 1]


def merge_cheapest(shapes, counts, kinds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unions = np.maximum(shapes[:, None], shapes[None])
    added = (costs_of(unions) - costs_of(shapes)[:, None]) * counts[:, None]
    added = added + added.T
    added[(kinds[:, None] != kinds[None]) | np.eye(len(kinds), dtype=bool)] = np.inf
    first, second = np.unravel_index(np.argmin(added), added.shape)
    keep = np.arange(len(shapes)) != second
    shapes, counts = shapes.copy(), counts.copy()
    shapes[first], counts[first] = unions[first, second], counts[first] + counts[second]
    return shapes[keep], counts[keep], kinds[keep]


def waste_of(sizes: Mapping[Kind, np.ndarray], buckets: Mapping[Kind, Sequence[Bucket]]) -> float:
    needed = padded = 0.0
    for kind, array in sizes.items():
        chosen = np.array([(b.slices, b.patches, b.tokens) for b in buckets[kind]])
        holds = (array[:, None] <= chosen[None]).all(axis=2)
        padded += np.where(holds, costs_of(chosen)[None], np.inf).min(axis=1).sum()
        needed += costs_of(array).sum()
    return float(1 - needed / padded)


def print_histogram(by_kind, refused) -> None:
    for kind, sizes in by_kind.items():
        if len(sizes):
            print(f"{kind}: {len(sizes)} records         least  quarter   half  three quarters   most")
            for name, column in zip(("slices", "patches in a slice", "prompt tokens"), sizes.T, strict=True):
                least, quarter, half, three, most = np.percentile(column, (0, 25, 50, 75, 100)).astype(int)
                print(f"  {name:20} {least:12} {quarter:8} {half:6} {three:15} {most:6}")
    refused = +refused
    if refused:
        print("cannot be used: " + ", ".join(f"{reason} {count}" for reason, count in refused.most_common()))


def print_choice(choice, chosen) -> None:
    print(f"\n{choice.waste:.1%} of the computation on prompts goes to padding.\nbuckets = {{")
    for kind, buckets in choice.buckets.items():
        shapes = ", ".join(f"Bucket(slices={b.slices}, patches={b.patches}, tokens={b.tokens})" for b in buckets)
        print(f'    "{kind}": ({shapes},),')
    print("}")
    if chosen.sizes is not None:
        print(f'sizes = "{chosen.sizes}"')
    elif any(len(buckets) > 1 for buckets in choice.buckets.values()):
        print("Training will read the sizes of all records; with --sizes FILE.npy it need not.")


if __name__ == "__main__":
    sys.exit(main())
