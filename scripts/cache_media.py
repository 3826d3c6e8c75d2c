"""Decodes the images and videos of a record file once, into a cache that training reads instead.

python scripts/cache_media.py --records train.json --media-root media --out cache --frames 16

Stop it at any time and run it again: finished shards are kept. Pixels are stored without loss. Entries are found
by the content of a file and by every setting that changes pixels, so a changed file is decoded anew in training,
and running the command again brings the cache up to date.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from vr1_jax.arguments import Budgets, check_at_least, check_directory
from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError

FAILURES = "failures.jsonl"


@dataclass(frozen=True, kw_only=True)
class Arguments(Budgets):
    records: Path  # JSON list or JSON lines
    media_root: Path  # directory that the records' paths are relative to
    out: Path  # the cache directory, new or to be completed
    processes: int | None = None  # files decoded at once; None: one a CPU

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, self, "processes")


def main(arguments: list[str] | None = None) -> int:
    return run_command("cache_media", fill, Arguments, arguments, __doc__, interrupted="run it again to go on")


def fill(chosen: Arguments) -> None:
    check_directory("--media-root", chosen.media_root)
    frames, images = chosen.budgets()
    from vr1_jax.data.record_file import RecordFile
    from vr1_jax.progress import Progress
    from vr1_jax.tools.cache_writer import LOCK, Settings, media_items, write_cache

    out = chosen.out
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / LOCK).exists())):
        raise UsageError(f"--out {out} exists and is no cache; choose another directory")
    items, unusable = media_items(RecordFile(chosen.records), chosen.media_root)
    print(f"{chosen.records}: {len(items)} files to have in {out}", file=sys.stderr, flush=True)
    with Progress("decoded", len(items), "file") as progress:
        processes, settings = chosen.processes or os.cpu_count(), Settings(frames, images)
        report = write_cache(items, out, settings, processes=processes, progress=progress.advance)
    report.failures = unusable + report.failures
    write_failures(out / FAILURES, report.failures)
    print_report(report, out)


def write_failures(path: Path, failures: list) -> None:
    """The failures of this run, one JSON object a line; no file where there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    from vr1_jax.files import whole_file

    with whole_file(path) as file:
        file.writelines(json.dumps(failure._asdict(), ensure_ascii=False) + "\n" for failure in failures)


def print_report(report, out: Path) -> None:
    print(f"{out}: {report.written} files decoded, {report.kept} kept, {report.bytes / 1e6:.1f} MB in all")
    if report.pixel_bytes:
        print(f"pixels decoded now: {report.pixel_bytes / 1e6:.1f} MB before compression")
    if report.failures:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.reasons.most_common())
        print(f"{len(report.failures)} cannot be used ({reasons}): see {out / FAILURES}")


if __name__ == "__main__":
    sys.exit(main())
