"""Chooses the few shapes that training compiles, from the sizes of the data, and prints them for the config.

python scripts/choose_buckets.py --records train.json --media-root media --model DIR --count 3

Sizes are read from file headers, of a sample of the records. With --sizes they are read of all records and kept:
training, which reads them itself where a kind (image, video, text) has more than one bucket, starts sooner.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vr1_jax.arguments import Budgets, check_at_least, check_directory
from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError


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
    from vr1_jax.files import check_output_file
    from vr1_jax.tools.buckets import choose_buckets
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
        save(chosen.sizes, sizes.table)
    try:
        print_choice(choose_buckets(by_kind, chosen.count), chosen)
    except ValueError as error:
        raise UsageError(f"--count: {error}") from None
    return 0


def look(records, chosen, encoder):
    import numpy as np
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
    from vr1_jax.data.sources import KINDS

    by_kind = {}
    for kind in KINDS:
        found = sizes.table[[number for number, its in sizes.kinds.items() if its == kind]]
        if max_tokens is not None:
            sizes.refused["too_long"] += int((found[:, 2] > max_tokens).sum())
            found = found[found[:, 2] <= max_tokens]
        by_kind[kind] = found
    return by_kind


def save(path: Path, sizes) -> None:
    import numpy as np

    from vr1_jax.files import whole_file

    with whole_file(path) as file:
        np.save(file.buffer, sizes)


def print_histogram(by_kind, refused) -> None:
    import numpy as np

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
