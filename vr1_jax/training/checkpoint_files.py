"""The files of checkpoints: names of step directories, and checksums of what is in them.

Checksums, because a restore must notice what the storage format itself does not. Each process takes a share of
the files, so that a large checkpoint is read by all machines at once; the checksums of all shares together cover
every file, whatever the number of processes that verify them.
"""

import logging
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vr1_jax.errors import UserError
from vr1_jax.files import read_json, write_json

_PREFIX = "checksums."
_THREADS = 4  # beside data loading, which must not starve
_BLOCK_BYTES = 4 * 2**20
_SAVING, _REMOVED, _DAMAGED = ".saving", ".removed", ".damaged"  # what a step directory's name may end in

logger = logging.getLogger(__name__)


def write_checksums(directory: Path, process: int = 0, processes: int = 1) -> None:
    """Bring this process's share of the files to disk and write down their sizes and CRC-32."""
    names = [str(path.relative_to(directory)) for path in _files(directory)]
    share = names[process::processes]
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = dict(zip(share, pool.map(lambda name: _read(directory / name, flush=True), share), strict=True))
    write_json(directory / f"{_PREFIX}{process}-of-{processes}.json", {"files": sums})


def damage(directory: Path, process: int = 0, processes: int = 1) -> str | None:
    """What is wrong with this process's share of the files, if anything is."""
    try:
        expected = _expected(directory)
    except (UserError, KeyError, OSError) as error:
        return f"its checksums cannot be read ({error})"
    share = sorted(expected)[process::processes]
    with ThreadPoolExecutor(_THREADS) as pool:
        findings = pool.map(lambda name: _compare(directory / name, expected[name]), share)
        return next((f"{name} {finding}" for name, finding in zip(share, findings, strict=True) if finding), None)


def _expected(directory: Path) -> dict[str, list[int]]:
    paths = sorted(directory.glob(f"{_PREFIX}*-of-*.json"))
    if not paths:
        raise UserError("none found")
    processes = int(paths[0].stem.rpartition("-")[2])
    files: dict[str, list[int]] = {}
    for process in range(processes):
        files |= read_json(directory / f"{_PREFIX}{process}-of-{processes}.json")["files"]
    return files


def _compare(path: Path, expected: list[int]) -> str | None:
    try:
        found = _read(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found == expected:
        return None
    return f"has {found[0]} bytes" if found[0] != expected[0] else "has altered content"


def _files(directory: Path) -> list[Path]:
    """In one order for all processes; the largest first, so that shares are even.

    Without the checksums, which another process may be writing meanwhile, aside at first.
    """
    paths = (path for path in directory.rglob("*") if _PREFIX not in path.name and path.is_file())
    return sorted(paths, key=lambda path: (-path.stat().st_size, str(path)))


def _read(path: Path, *, flush: bool = False) -> list[int]:
    """Size and CRC-32."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size, crc = size + len(block), zlib.crc32(block, crc)
        if flush:
            os.fsync(file.fileno())
    return [size, crc]


def numbered(steps: Path) -> list[int]:
    """Checkpoints, ascending: only what has a plain number for a name is one. `checkpoint_dir.steps` leaves
    out those that lost their parameters.
    """
    return sorted(int(entry.name) for entry in steps.iterdir() if entry.name.isdecimal() and entry.is_dir())


def aside(directory: Path) -> Path:
    """Where a step is written; Orbax appends a suffix of its own until it has finished its part."""
    return directory.with_suffix(_SAVING)


def set_aside(directory: Path) -> None:
    """Out of the way of the step's next save; a person may want to look at it."""
    target = directory.with_suffix(_DAMAGED)
    shutil.rmtree(target, ignore_errors=True)
    directory.rename(target)
    logger.warning("kept as %s; delete it when it is of no use", target)


def remove(directory: Path) -> None:
    """Under another name first, so that a kill leaves no half of it under its number."""
    shutil.rmtree(directory.rename(directory.with_suffix(_REMOVED)))


def clear_leftovers(steps: Path) -> None:
    """What killed or failed saves left. Whatever resists, being written to still, goes the next time."""
    for entry in steps.iterdir():
        number, _, rest = entry.name.partition(".")
        if number.isdecimal() and f".{rest}".startswith((_SAVING, _REMOVED)):
            shutil.rmtree(entry, ignore_errors=True)
