"""Progress of long work: a bar on a terminal, a plain line every tenth elsewhere."""

import sys

from tqdm import tqdm


class Progress:
    """Counts things done, or bytes."""

    def __init__(self, what: str, total: int, unit: str = ""):
        self._what, self._total, self._done, self._unit = what, max(total, 1), 0, unit
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=what, total=total, unit=unit or "it", unit_scale=unit == "B", file=sys.stderr)

    def advance(self, count: int = 1) -> None:
        tenths = 10 * self._done // self._total
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif 10 * self._done // self._total > tenths:
            of = f"{self._done} of {self._total}"
            if self._unit == "B":
                of = f"{self._done / self._total:.0%} of {self._total / 1e6:.3g} MB"
            print(f"{self._what}: {of}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
