"""Progress of long copies: a bar on a terminal, a line every tenth elsewhere."""

import sys

from tqdm import tqdm


class Progress:
    def __init__(self, what: str, total_bytes: int):
        self._what, self._total, self._done = what, total_bytes, 0
        self._bar = tqdm(desc=what, total=total_bytes, unit="B", unit_scale=True) if sys.stderr.isatty() else None

    def advance(self, count: int) -> None:
        tenths = 10 * self._done // self._total
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif 10 * self._done // self._total > tenths:
            share, total = self._done / self._total, self._total / 1e9
            print(f"{self._what}: {share:.0%} of {total:.2f} GB", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
