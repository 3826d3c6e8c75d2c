"""Results that survive a kill: a file that only grows, one JSON line for each piece of work that is done.

Its first line says what the results depend on; a restart with other settings is refused by the name of the
setting. What a kill left half-written at the end is cut off. Only one process at a time may hold a journal.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vr1_jax.errors import UsageError, UserError
from vr1_jax.files import lock

_OPENING = b'{"settings": '


class OtherSettings(UsageError):
    """The journal holds results that depend on other settings."""


class Journal:
    """Results by number, on disk; only their places are kept in memory.

        with Journal(path, {"model": .., "seed": 0}) as journal:
            for number, result in work(n for n in range(total) if n not in journal):
                journal.add([(number, result)])
            everything = [journal[n] for n in range(total)]
        path.unlink()

    `settings` is whatever JSON the results depend on. A number that was added twice has its last result. A journal
    that is closed without any result leaves no file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self._places: dict[int, tuple[int, int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self._read(json.loads(json.dumps(settings)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._places:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._places))

    def __getitem__(self, number: int) -> Any:
        start, length = self._places[number]
        # pread leaves the position alone, and sees what add() has flushed.
        return json.loads(os.pread(self._file.fileno(), length, start))["result"]

    def add(self, results: Iterable[tuple[int, Any]]) -> None:
        """On disk when this returns."""
        places, end = {}, self._file.seek(0, os.SEEK_END)
        for number, result in results:
            line = json.dumps({"number": number, "result": result}, ensure_ascii=False, allow_nan=False)
            places[number] = end, self._file.write(line.encode() + b"\n")
            end += places[number][1]
        self._flush()
        self._places |= places

    def _lock(self) -> None:
        if not lock(self._file):
            raise UserError(f"{self.path}: another process is writing it; wait for it to end")

    def _read(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        start = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n") and (start > 0 or _OPENING.startswith(line[: len(_OPENING)])):
                self._file.truncate(start)
                break
            try:
                entry = json.loads(line)
                if number == 1:
                    self._compare(entry["settings"], settings)
                else:
                    self._places[int(entry["number"])] = start, len(line)
            except (ValueError, TypeError, KeyError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"{self.path}: line {number} is no result; remove the file to begin anew"
                ) from None
            start += len(line)
        if start == 0:
            self._file.write(json.dumps({"settings": settings}, ensure_ascii=False).encode() + b"\n")
            self._flush()

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        changed = [name for name in dict.fromkeys((*wanted, *found)) if found.get(name) != wanted.get(name)]
        if changed:
            differences = (
                f"{name} {json.dumps(found.get(name))}, not {json.dumps(wanted.get(name))}" for name in changed
            )
            raise OtherSettings(
                f"{self.path}: holds results made with {' and with '.join(differences)}; set it back, or remove "
                "the file to begin anew"
            )

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
