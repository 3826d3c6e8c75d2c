"""Outputs that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vr1_jax.weights.errors import OutputError

_SPARE_BYTES = 64 * 2**20  # configs, tokenizer, directories


@contextmanager
def whole_directory(
    out: Path, *, source: Path, bytes_needed: int, force: bool, replaceable: Callable[[Path], bool]
) -> Iterator[Path]:
    """A directory to write into, which becomes `out` at the end; after any error nothing of it remains."""
    check_output(out, source=source, force=force, replaceable=replaceable)
    out = out.resolve()  # what writes the arrays takes no ..
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_space(out, bytes_needed + _SPARE_BYTES)
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    aside.mkdir()
    try:
        yield aside
        _flush(aside)
        _replace(out, aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_output(out: Path, *, source: Path, force: bool, replaceable: Callable[[Path], bool]) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise OutputError(f"{out}: exists; --force replaces it")
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise OutputError(f"{out}: would replace what is being converted")
    if out.is_symlink() or not out.is_dir() or not replaceable(out):
        raise OutputError(
            f"{out}: holds other files than this command writes; remove it yourself or choose another"
        )


def out_of_space(error: BaseException) -> bool:
    """Also of tensorstore, which reports the system's error as text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or any(
        os.strerror(code) in str(error) for code in full
    )


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise OutputError(f"{out}: needs {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free")


def _flush(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(out: Path, new: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".replaced")
    out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
