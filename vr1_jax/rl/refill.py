"""Dynamic sampling: where all answers of a group earn the same, further questions take its place."""

from collections import defaultdict
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vr1_jax.rl.experience import local_rows


def of_attempts(attempts: list[dict[str, float]]) -> dict[str, float]:
    """Metrics over everything sampled in a step, of which the last batch is no fair sample: it was asked for
    only where those before it had no signal.

    Attempts are batches of one size, so that a mean of their means is the mean; tokens add up.
    """
    names = sorted({name for metrics in attempts for name in metrics})
    found = {name: [metrics[name] for metrics in attempts if name in metrics] for name in names}
    together = {name: float(np.mean(values)) for name, values in found.items()}
    if "sampled_tokens" in found:
        together["sampled_tokens"] = sum(found["sampled_tokens"])
    return together | {"refilled": float(len(attempts) - 1)}


class Pool:
    """Rows worth learning from, by the shape of their prompts, until one shape has a batch of them.

    Batches of one run have one bucket each, so rows of different batches go together only if their buckets
    agree. Rows of other shapes are dropped with the pool: at the next step they would be another policy's.
    """

    def __init__(self, wanted: int):
        self.wanted = wanted  # rows of this process
        self._rows: dict[Any, list[Any]] = defaultdict(list)
        self._silent: dict[Any, list[Any]] = defaultdict(list)

    def add(self, bucket: Any, batch: Any, has_signal: np.ndarray) -> None:
        """`batch` is a tree of batch-sharded arrays; its rows come to the host."""
        rows = jax.tree.map(local_rows, batch)
        for row, good in enumerate(has_signal):
            (self._rows if good else self._silent)[bucket].append(jax.tree.map(lambda x, row=row: x[row], rows))

    def is_full(self) -> bool:
        """Whether every process has enough rows of some one shape: all of them see the same shapes."""
        return self._best() is not None

    def take(self) -> tuple[Any, np.ndarray]:
        """A batch of rows, and which of them have signal: silent ones fill what is still empty."""
        bucket = self._best() or max(self._counts(), key=lambda bucket: (self._counts()[bucket], str(bucket)))
        good = self._rows[bucket][: self.wanted]
        rows = good + self._silent[bucket][: self.wanted - len(good)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), np.arange(len(rows)) < len(good)

    def _best(self) -> Any | None:
        counts = self._counts()
        full = [bucket for bucket, count in counts.items() if count >= self.wanted]
        return min(full, key=str, default=None)

    def _counts(self) -> dict[Any, int]:
        """Rows with signal by shape: of the process that has fewest."""
        buckets = sorted(self._rows.keys() | self._silent.keys(), key=str)
        counts = np.array([len(self._rows[bucket]) for bucket in buckets])
        if jax.process_count() > 1:
            counts = multihost_utils.process_allgather(counts).min(axis=0)
        return dict(zip(buckets, counts.tolist(), strict=True))
