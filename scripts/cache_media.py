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

FAILURES = "failures.jsonl"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="JSON list or JSON lines")
    parser.add_argument("--media-root", type=Path, required=True, help="what the records' paths are relative to")
    parser.add_argument("--out", type=Path, required=True, help="the cache directory, new or to be completed")
    parser.add_argument("--frames", type=int, required=True, help="most frames of a video, as in training")
    parser.add_argument("--frame-pixels", type=int, default=128 * 28 * 28, help="pixels of a frame after resizing")
    parser.add_argument("--image-pixels", type=int, default=256 * 28 * 28, help="most pixels of an image")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many files are decoded at once")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)

    def refuse(code: int, message: object) -> int:
        print(f"cache_media: {message}", file=sys.stderr)
        return code

    from vr1_jax.data.cache import CacheError
    from vr1_jax.data.cache_writer import LOCK, Settings, media_items, write_cache
    from vr1_jax.data.frames import TRAINING_BUDGET, FrameBudget, ImageBudget
    from vr1_jax.data.record_file import RecordFile
    from vr1_jax.data.records import RecordError

    if chosen.processes < 1:
        return refuse(2, f"--processes must be at least 1, got {chosen.processes}")
    if not chosen.media_root.is_dir():
        return refuse(2, f"--media-root {chosen.media_root}: no such directory")
    out = chosen.out
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / LOCK).exists())):
        return refuse(2, f"--out {out} exists and is no cache; choose another directory")
    try:
        settings = Settings(
            FrameBudget(
                min_frames=min(TRAINING_BUDGET.min_frames, chosen.frames),
                max_frames=chosen.frames,
                min_pixels=chosen.frame_pixels,
                max_pixels=chosen.frame_pixels,
            ),
            ImageBudget(max_pixels=chosen.image_pixels),
        )
    except ValueError as error:
        return refuse(2, f"--frames, --frame-pixels or --image-pixels: {error}")
    try:
        items, unusable = media_items(RecordFile(chosen.records), chosen.media_root)
        print(f"{chosen.records}: {len(items)} files to have in {out}", file=sys.stderr, flush=True)
        with Progress(len(items)) as progress:
            report = write_cache(items, out, settings, processes=chosen.processes, progress=progress)
    except (CacheError, RecordError) as error:
        return refuse(1, error)
    except OSError as error:
        return refuse(1, f"{error.filename or out}: {error.strerror}")
    except KeyboardInterrupt:
        return refuse(1, "interrupted; run it again to go on")
    report.failures = unusable + report.failures
    write_failures(out / FAILURES, report.failures)
    print_report(report, out)
    return 0


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
