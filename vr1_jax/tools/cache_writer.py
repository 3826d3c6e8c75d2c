"""Decodes the media of a record file into a cache directory, in parallel, and goes on where it was stopped.

A shard is written under another name, renamed, and made valid by its sidecar, which is renamed into place last.
So whatever a kill leaves behind is either a whole shard or files that the next run removes. Media that a valid
shard holds under the same content and settings are not decoded again.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError
from vr1_jax.errors import UserError
from vr1_jax.files import flush, lock, whole_file
from vr1_jax.media.cache import content_hash, pack, read_sidecar, settings_key, signature
from vr1_jax.media.frames import FrameBudget, ImageBudget, MediaError
from vr1_jax.media.isolation import end_with_parent
from vr1_jax.media.reader import FOLDER_FPS, MediaReader
from vr1_jax.media.video import Clip

WRITER_OPTIONS = "group_size:1,zstd:3"
SHARD_FILES = 64  # at most
LOCK = ".lock"
METHODS = {"image": "image", "video": "video", "frames": "frame_folder"}


@dataclass(frozen=True)
class Settings:
    """What the cached pixels depend on."""

    frame_budget: FrameBudget
    image_budget: ImageBudget
    unit: int = 28

    def key(self, kind: str) -> str:
        if kind == "image":
            return settings_key(kind, self.unit, self.image_budget)
        return settings_key(kind, self.unit, self.frame_budget, FOLDER_FPS if kind == "frame_folder" else None)


class Item(NamedTuple):
    """A file to decode; `kind` is the name of MediaReader's method."""

    kind: str
    source: str


class Failure(NamedTuple):
    source: str
    reason: str
    detail: str


@dataclass
class Report:
    """What a cache holds of a record file after a run."""

    kept: int = 0
    written: int = 0
    bytes: int = 0
    pixel_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(failure.reason for failure in self.failures)


def media_items(records: RecordFile, root: Path) -> tuple[list[Item], list[Failure]]:
    """Every file that the records name, once, in their order; and the records that name none that exists."""
    items, failures = {}, []
    for index in range(len(records)):
        try:
            sample = records[index]
            if sample.data_type != "text":
                items[Item(METHODS[sample.data_type], os.fspath(sample.media(root)))] = None
        except RecordError as error:
            failures.append(Failure(f"record {index}", "path" if error.field == "path" else "record", str(error)))
    return list(items), failures


def write_cache(
    items: Sequence[Item],
    directory: Path,
    settings: Settings,
    *,
    processes: int,
    progress: Callable[[int], None] = lambda files: None,
) -> Report:
    """Decode what the directory lacks. `progress` is called with the number of files that were dealt with."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as file:
        if not lock(file):
            raise UserError(f"{directory}: another run is writing this cache")
        held, next_shard = _tidy(directory)
        missing = [item for item in items if not _is_held(item, settings.key(item.kind), held)]
        report = Report(kept=len(items) - len(missing))
        progress(report.kept)
        size = max(1, min(SHARD_FILES, -(-len(missing) // processes)))  # a small job is still spread over all
        chunks = [missing[at : at + size] for at in range(0, len(missing), size)]
        processes = min(processes, max(1, len(chunks)))
        with ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent) as pool:
            shards = (
                pool.submit(write_shard, chunk, directory, n, settings)
                for n, chunk in enumerate(chunks, next_shard)
            )
            try:
                for shard in as_completed(list(shards)):
                    written, pixel_bytes, failures = shard.result()
                    report.written += written
                    report.pixel_bytes += pixel_bytes
                    report.failures += failures
                    progress(written + len(failures))
            except BrokenProcessPool:
                raise UserError(
                    f"{directory}: a decoding process was killed (out of memory?); run again to go on"
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        report.bytes = sum(read_sidecar(path)["bytes"] for path in directory.glob("shard-*.json"))
    return report


def _is_held(item: Item, key: str, held: set[tuple[str, ...]]) -> bool:
    try:
        return (item.source, key, signature(item.source)) in held or (key, content_hash(item.source)) in held
    except OSError:  # it vanished: decoding it will tell
        return False


def _tidy(directory: Path) -> tuple[set[tuple[str, ...]], int]:
    """Remove unfinished and damaged shards. What the valid ones hold, as (source, settings, signature) and as
    (settings, content); and the number of the next one."""
    held, valid, last = set(), set(), -1
    for path in sorted(directory.glob("shard-*.json")):
        shard = path.with_suffix(".arrayrecord")
        try:
            sidecar = read_sidecar(path)
        except UserError:
            sidecar = None
        if sidecar is None or not shard.exists() or shard.stat().st_size != sidecar["bytes"]:
            path.unlink()
            continue
        valid.add(shard)
        last = max(last, int(path.stem.removeprefix("shard-")))
        held |= {(e["source"], e["settings"], e["signature"]) for e in sidecar["entries"] if e["signature"]}
        held |= {(e["settings"], e["content"]) for e in sidecar["entries"]}
    for path in [*directory.glob("shard-*.arrayrecord"), *directory.glob(".shard-*")]:
        if path not in valid:
            path.unlink()
    return held, last + 1


def write_shard(
    items: Sequence[Item], directory: Path, number: int, settings: Settings
) -> tuple[int, int, list[Failure]]:
    """How many files the shard holds, the size of their pixels, and the files that cannot be decoded."""
    from array_record.python import array_record_module

    name, entries, failures, pixel_bytes = f"shard-{number:05d}", [], [], 0
    aside = directory / f".{name}.arrayrecord"
    writer = array_record_module.ArrayRecordWriter(str(aside), WRITER_OPTIONS)
    with MediaReader(unit=settings.unit) as reader:
        for item in items:
            try:
                entry, clip = _decode(item, reader, settings)
            except MediaError as error:
                failures.append(Failure(item.source, error.reason, str(error)))
                continue
            writer.write(pack(f"{entry['content']}-{entry['settings']}", clip))
            entries.append(entry)
            pixel_bytes += clip.frames.nbytes
    writer.close()
    if not entries:
        aside.unlink()
        return 0, 0, failures
    flush(aside)  # before it is renamed, so that a power cut leaves no finished-looking shard
    sidecar = {"bytes": aside.stat().st_size, "settings": asdict(settings), "entries": entries}
    aside.rename(directory / f"{name}.arrayrecord")
    with whole_file(directory / f"{name}.json") as file:
        json.dump(sidecar, file, ensure_ascii=False)
    return len(entries), pixel_bytes, failures


def _decode(item: Item, reader: MediaReader, settings: Settings) -> tuple[dict, Clip]:
    try:
        before, content = signature(item.source), content_hash(item.source)
        if item.kind == "image":
            pixels = reader.image(item.source, settings.image_budget)[None]
            clip = Clip(pixels, np.zeros(1, np.int64), np.zeros(1), 1, 0.0, 1.0, "pillow", "")
        else:
            clip = getattr(reader, item.kind)(item.source, settings.frame_budget)
        # A fresh file has no signature yet; then its content must be what it was.
        changed = signature(item.source) != before if before else content_hash(item.source) != content
    except OSError as error:
        raise MediaError(item.source, "missing", error.strerror or str(error)) from error
    if changed:
        raise MediaError(item.source, "changed", "it changed while it was read")
    entry = {
        "source": os.path.realpath(item.source),
        "kind": item.kind,
        "signature": before,
        "content": content,
        "settings": settings.key(item.kind),
    }
    return entry, clip
