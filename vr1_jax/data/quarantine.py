"""Refused records: counted, written down once each, and too many of them end the run.

`quarantine.jsonl` is also the run's memory: a record in it is not tried again after a restart, so a decoder that
failed under load and would not fail today changes nothing about the order. Delete a line to have its record
tried again. Of several processes, each of which decodes its own rows, the first writes `quarantine.jsonl` and
process N `quarantine.N.jsonl`; all of them read all, so that the number of processes may change at a restart.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vr1_jax.data.collate import DoesNotFit, LayoutError
from vr1_jax.data.records import RecordError, Sample
from vr1_jax.errors import UserError
from vr1_jax.media.frames import MediaError

RefusedErrors = (RecordError, MediaError, DoesNotFit, LayoutError)


@dataclass(frozen=True)
class Refusal:
    """Why one record is not used. `reason` is one word for counting, `detail` a sentence."""

    file: str
    index: int
    id: int | str | None
    path: str | None
    reason: str
    detail: str

    @classmethod
    def of(cls, error: Exception, file: str, index: int, sample: Sample | None = None) -> "Refusal":
        id, path = (sample.problem_id, sample.path) if sample is not None else (None, None)
        return cls(file, index, id, path, _reason(error), str(error))

    @property
    def key(self) -> tuple[str, int]:
        return self.file, self.index


def _reason(error: Exception) -> str:
    if isinstance(error, MediaError):
        return error.reason
    if isinstance(error, RecordError):
        return "path" if error.field == "path" else "record"
    return "too_long" if isinstance(error, DoesNotFit) else "layout"


class Quarantine:
    """The refused records of a run, in `path` where one is given, and beside it those of other processes.

    Once this process has tried `minimum` records, more than `max_share` refused ones raise UserError.
    """

    def __init__(
        self,
        path: Path | None = None,
        max_share: float = 0.1,
        minimum: int = 200,
        *,
        process: int = 0,
        processes: int = 1,
    ):
        self.path, self.max_share, self.minimum = path, max_share, minimum
        self._process, self._processes = process, processes
        if path is not None and process:
            self.path = path.with_suffix(f".{process}{path.suffix}")
        _remove_half_line(self.path)
        self._refused = {refusal.key: refusal for file in _files(path) for refusal in _read(file)}
        self._earlier = frozenset(self._refused)
        self._unreadable: set[tuple[str, int]] = set()

    def __len__(self) -> int:
        return len(self._refused)

    @property
    def known(self) -> frozenset[tuple[str, int]]:
        """(file, index) of every record refused before this start, by any process, and by this one since."""
        return frozenset(self._refused)

    @property
    def counts(self) -> Counter[str]:
        return Counter(refusal.reason for refusal in self._refused.values())

    def start(self, unreadable: Iterable[Refusal], records: int) -> None:
        """Records that the files of `records` records hold but that cannot be parsed: every process finds them."""
        unreadable = list(unreadable)
        self._unreadable = {refusal.key for refusal in unreadable}
        self._keep(unreadable, write=self._process == 0)
        self._check(len(unreadable), records)

    def add(self, refusals: Iterable[Refusal], served: int) -> None:
        """Records refused on the way to the prompts of which this process, or its like, has had `served`."""
        self._keep(refusals, write=True)
        fresh = self._refused.keys() - self._unreadable - self._earlier
        found = len(fresh) + round(len(self._earlier - self._unreadable) / self._processes)
        self._check(found, served + found)

    def _keep(self, refusals: Iterable[Refusal], *, write: bool) -> None:
        fresh = {refusal.key: refusal for refusal in refusals if refusal.key not in self._refused}
        self._refused |= fresh
        if fresh and write and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in fresh.values()))

    def _check(self, refused: int, tried: int) -> None:
        if tried < self.minimum or refused <= self.max_share * tried:
            return
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        where = f"; see {self.path}" if self.path is not None else ""
        raise UserError(
            f"{refused} of {tried} records cannot be used, the limit is {self.max_share:.1%}: {reasons}{where}"
        )


def _files(path: Path | None) -> list[Path]:
    """Of all processes that the run ever had."""
    if path is None:
        return []
    return [file for file in (path, *sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))) if file.exists()]


def _remove_half_line(path: Path | None) -> None:
    """What a kill left of a line, at the end of this process's own file."""
    if path is not None and path.exists():
        text = path.read_bytes()
        os.truncate(path, text.rfind(b"\n") + 1)


def _read(path: Path) -> list[Refusal]:
    """The refusals in a file; another process's may be in the middle of its last line."""
    text = path.read_bytes()
    refusals = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
        try:
            refusals.append(Refusal(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: line {number} is no refusal ({error}); mend or delete it") from None
    return refusals
