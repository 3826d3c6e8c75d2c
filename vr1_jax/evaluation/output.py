"""Files that appear whole or not at all, and progress while they are made."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm


class OutputExists(ValueError):
    """An output path that must not be written; the message says why."""


def check_output(out: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse, before any work, to write over what is there or what is read."""
    if out.is_dir():
        raise OutputExists(f"{out}: is a directory; --out names a file")
    if out.exists() and not out.is_file():
        raise OutputExists(f"{out}: is no regular file; choose another --out")
    folder = next(path for path in out.absolute().parents if path.exists())
    if not folder.is_dir():
        raise OutputExists(f"{folder}: is not a directory; choose another --out")
    if not os.access(folder, os.W_OK):
        raise OutputExists(f"{folder}: cannot be written to; choose another --out")
    if any(out.resolve() == path.resolve() for path in inputs):
        raise OutputExists(f"{out}: would replace what is read; choose another --out")
    if out.exists() and not force:
        raise OutputExists(f"{out}: exists; --force replaces it")


@contextmanager
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


class Progress:
    """Counts things done: a bar on a terminal, a plain line every tenth elsewhere."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._bar = tqdm(desc=what, total=total, file=sys.stderr) if sys.stderr.isatty() else None

    def advance(self, count: int = 1) -> None:
        tenths = 10 * self._done // self._total
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif 10 * self._done // self._total > tenths:
            print(f"{self._what}: {self._done} of {self._total}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
