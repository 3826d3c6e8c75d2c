"""Reading and writing files: outputs appear whole or not at all, JSON is bounded, one process writes at a time."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from vr1_jax.errors import UsageError, UserError

MOST_JSON_BYTES = 64 * 2**20  # a published tokenizer.json has 7 to 34 MB
# What goes through a file's content recursively, here and in other packages, must not run out of stack.
MOST_JSON_LEVELS = 64
_SPARE_BYTES = 64 * 2**20  # of a directory besides its weights: configs, tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that others may have written; reading it always ends."""
    try:
        if (size := path.stat().st_size) > MOST_JSON_BYTES:
            limit = MOST_JSON_BYTES / 1e6
            raise UserError(f"{path}: {size / 1e6:.0f} MB; a JSON file of a model has at most {limit:.0f}")
        content = json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist") from None
    except RecursionError as error:
        raise UserError(f"{path}: nested too deep") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if _is_deeper(content, MOST_JSON_LEVELS):
        raise UserError(f"{path}: nested deeper than {MOST_JSON_LEVELS} levels")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _is_deeper(content: Any, levels: int) -> bool:
    level = [content]
    for _ in range(levels):
        containers = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in containers for child in (node.values() if isinstance(node, dict) else node)]
    return any(isinstance(node, dict | list) for node in level)


def write_json(path: Path, content: Any) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def whole_file(out: Path) -> Iterator[TextIO]:
    """A file to write, which becomes `out` at the end; after any error nothing of it remains."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """A directory to write into, which replaces `out` at the end; after any error nothing of it remains."""
    out = out.resolve()  # what writes the arrays takes no ..
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    aside.mkdir()
    try:
        yield aside
        flush(aside, *aside.rglob("*"))
        _replace(out, aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


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


def flush(*paths: Path) -> None:
    """Make files outlast a loss of power, and the entries of directories."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_output_file(out: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse, before any work, to write over what is there or what is read."""
    if out.is_dir():
        raise UsageError(f"{out}: is a directory; --out names a file")
    if out.exists() and not out.is_file():
        raise UsageError(f"{out}: is no regular file; choose another --out")
    folder = next(path for path in out.absolute().parents if path.exists())
    if not folder.is_dir():
        raise UsageError(f"{folder}: is not a directory; choose another --out")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: cannot be written to; choose another --out")
    if any(out.resolve() == path.resolve() for path in inputs):
        raise UsageError(f"{out}: would replace what is read; choose another --out")
    if out.exists() and not force:
        raise UsageError(f"{out}: exists; --force replaces it")


def check_output_directory(out: Path, *, source: Path, force: bool, replaceable: Callable[[Path], bool]) -> None:
    """Refuse to replace anything but an earlier output of the same command, and only if told to."""
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise UsageError(f"{out}: exists; --force replaces it")
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise UsageError(f"{out}: would replace what is being converted")
    if out.is_symlink() or not out.is_dir() or not replaceable(out):
        raise UsageError(f"{out}: holds other files than this command writes; remove it or choose another")


def check_space(out: Path, needed: int) -> None:
    folder = next(path for path in out.absolute().parents if path.exists())
    free, needed = shutil.disk_usage(folder).free, needed + _SPARE_BYTES
    if free < needed:
        raise UsageError(f"{out}: needs {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free")


def out_of_space(error: BaseException) -> bool:
    """Also of tensorstore, which reports the system's error as text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    by_text = isinstance(error, OSError | ValueError | RuntimeError) and any(
        os.strerror(code) in str(error) for code in full
    )
    return by_text or (isinstance(error, OSError) and error.errno in full)


def lock(file: IO[Any]) -> bool:
    """Whether this process now holds the open file for itself. The kernel frees it however the process ends.

    An OSError says that the file system cannot lock.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
