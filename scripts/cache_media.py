"""Decodes the images and videos of a record file once, into a cache that training reads instead.

python scripts/cache_media.py --records train.json --media-root media --out cache --frames 16

Stop it at any time and run it again: finished shards are kept. Pixels are stored without loss. Entries are found
by the content of a file and by every setting that changes pixels, so a changed file is decoded anew in training,
and running the command again brings the cache up to date.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vr1_jax import command_line
from vr1_jax.errors import UsageError

FAILURES = "failures.jsonl"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    command_line.add_records(parser)
    parser.add_argument("--out", type=Path, required=True, help="the cache directory, new or to be completed")
    command_line.add_budgets(parser)
    parser.add_argument(
        "--processes",
        type=command_line.positive,
        default=os.cpu_count(),
        help="how many files are decoded at once",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    interrupted = "run it again to go on"
    return command_line.run("cache_media", lambda: fill(chosen), out=chosen.out, interrupted=interrupted)


def fill(chosen: argparse.Namespace) -> None:
    command_line.check_media_root(chosen.media_root)
    frames, images = command_line.training_budgets(chosen)
    from vr1_jax.data.record_file import RecordFile
    from vr1_jax.tools.cache_writer import LOCK, Settings, media_items, write_cache

    out = chosen.out
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / LOCK).exists())):
        raise UsageError(f"--out {out} exists and is no cache; choose another directory")
    items, unusable = media_items(RecordFile(chosen.records), chosen.media_root)
    print(f"{chosen.records}: {len(items)} files to have in {out}", file=sys.stderr, flush=True)
    with Progress(len(items)) as progress:
        report = write_cache(items, out, Settings(frames, images), processes=chosen.processes, progress=progress)
    report.failures = unusable + report.failures
    write_failures(out / FAILURES, report.failures)
    print_report(report, out)


class Progress:
    """Counts files: a bar on a terminal, a line every twentieth elsewhere."""

    def __init__(self, total: int):
        self._total, self._done, self._bar = total, 0, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="file")

    def __call__(self, files: int) -> None:
        before, self._done = self._done, self._done + files
        if self._bar is not None:
            self._bar.update(files)
        elif self._total and 20 * self._done // self._total > 20 * before // self._total:
            share = self._done / self._total
            print(f"{self._done} of {self._total} files, {share:.0%}", file=sys.stderr, flush=True)

    def __enter__(self) -> Callable[[int], None]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def write_failures(path: Path, failures: list) -> None:
    """The failures of this run, one JSON object a line; no file where there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f".{path.name}")
    aside.write_text(
        "".join(json.dumps(vars(failure), ensure_ascii=False) + "\n" for failure in failures), "utf-8"
    )
    aside.rename(path)


def print_report(report, out: Path) -> None:
    print(f"{out}: {report.written} files decoded, {report.kept} kept, {report.bytes / 1e6:.1f} MB in all")
    if report.pixel_bytes:
        print(f"pixels decoded now: {report.pixel_bytes / 1e6:.1f} MB before compression")
    if report.failures:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.reasons.most_common())
        print(f"{len(report.failures)} cannot be used ({reasons}): see {out / FAILURES}")


if __name__ == "__main__":
    sys.exit(main())
