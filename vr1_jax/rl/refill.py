"""Dynamic sampling: where all answers of a group earn the same, further questions take its place."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vr1_jax.sharding import local_rows


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
    """Rows worth learning from, until there is a batch of them.

    All come from batches of one step, which share a bucket. What is left over is dropped with the pool: at the
    next step it would be another policy's.
    """

    def __init__(self, wanted: int):
        self.wanted = wanted  # rows of this process
        self._rows: list[Any] = []
        self._silent: list[Any] = []

    def add(self, batch: Any, has_signal: np.ndarray) -> None:
        """`batch` is a tree of batch-sharded arrays; its rows come to the host."""
        rows = jax.tree.map(local_rows, batch)
        for row, good in enumerate(has_signal):
            (self._rows if good else self._silent).append(jax.tree.map(lambda x, row=row: x[row], rows))

    def is_full(self) -> bool:
        """Whether every process has enough rows."""
        count = np.array(len(self._rows))
        if jax.process_count() > 1:
            count = multihost_utils.process_allgather(count).min()
        return int(count) >= self.wanted

    def take(self) -> tuple[Any, np.ndarray]:
        """A batch of rows, and which of them have signal: silent ones fill what is still empty."""
        good = self._rows[: self.wanted]
        rows = good + self._silent[: self.wanted - len(good)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), np.arange(len(rows)) < len(good)
