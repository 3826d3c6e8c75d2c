"""From sampled answers to an Experience: read them, judge them, compare them within their group.

Each process judges the rows it holds; only [B G] tables of advantages go back to the devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool

from vr1_jax.rewards.scoring import RewardFunction, Scores, score_groups
from vr1_jax.rl.advantages import GroupSignal, GRPOConfig, combine
from vr1_jax.sharding import local_rows
from vr1_jax.types import Completion


@dataclass(frozen=True)
class Judged:
    """This process's answers and what became of them: texts [B][G], and tables over the same rows."""

    ordered: list[list[str]]
    shuffled: list[list[str]]  # empty lists without shuffled rows
    scores: Scores
    shuffled_scores: Scores | None
    signal: GroupSignal
    lengths: np.ndarray
    metrics: dict[str, float] = field(default_factory=dict)


def trim(completion: Completion, capacity: int) -> Completion:
    """Drop slots that no answer of the batch reached."""
    slots = slots_reached(completion.mask, capacity)
    return Completion(
        completion.tokens[..., :slots],
        completion.mask[..., :slots],
        completion.logps[..., :slots],
        completion.stopped,
    )


def slots_reached(mask: Bool[Array, "B G C"], capacity: int) -> int:
    """The length of the batch's longest answer, over all processes; in quarters, so that few shapes compile."""
    quarter = -(-capacity // 4)
    return min(capacity, -(-max(int(_longest(mask)), 1) // quarter) * quarter)


@jax.jit
def _longest(mask: jax.Array) -> jax.Array:
    return mask.sum(-1).max()


def masked(completion: Completion, kept: Bool[Array, "B #G"]) -> Completion:
    """Without the other answers' tokens: they leave the loss, and the KL penalty with it."""
    return dataclasses.replace(completion, mask=completion.mask & kept[..., None])


class Read(NamedTuple):
    """The answers of this process's rows."""

    texts: list[list[str]]  # [B][G]
    lengths: np.ndarray  # [B G] in tokens
    stopped: np.ndarray  # [B G] by an end, not by the length limit


def texts(completion: Completion, decode: Callable[[list[int]], str]) -> Read:
    tokens, lengths = local_rows(completion.tokens), local_rows(completion.mask).sum(-1)
    rows = [
        [decode(row[:length].tolist()) for row, length in zip(group, group_lengths, strict=True)]
        for group, group_lengths in zip(tokens, lengths, strict=True)
    ]
    return Read(rows, lengths, local_rows(completion.stopped))


def judge(
    algorithm: GRPOConfig,
    samples: Sequence[Any],
    ordered: Read,
    shuffled: Read | None,
    rewards: Sequence[RewardFunction] = (),
    *,
    limit: int = 0,
) -> Judged:
    """Rewards and advantages of ordered answers, the shuffled ones being what they are measured against.

    `limit` is the most tokens that an answer may have.
    """
    answers, lengths = ordered.texts, ordered.lengths
    scores = score_groups(answers, samples, rules=algorithm.rules, rewards=rewards)
    against = score_groups(shuffled.texts, samples, rules=algorithm.rules) if shuffled else None
    is_video = np.array([sample.is_video for sample in samples])
    signal = combine(
        algorithm,
        scores.accuracy,
        scores.other(algorithm.format_weight),
        lengths,
        shuffled=against.accuracy if against else None,
        is_video=is_video,
        limit=limit,
    )
    metrics = {**signal.metrics, "format": float(scores.format.mean()), "length": float(lengths.mean())}
    metrics["cut_off"] = float(1 - ordered.stopped.mean())
    metrics |= {name: float(table.mean()) for name, table in scores.extra.items()}
    metrics["sampled_tokens"] = float(lengths.sum() + (shuffled.lengths.sum() if shuffled else 0))
    if against is not None and is_video.any():
        metrics["accuracy_video"] = float(scores.accuracy[is_video].mean())
        metrics["accuracy_shuffled"] = float(against.accuracy[is_video].mean())
        metrics["temporal_gap"] = metrics["accuracy_video"] - metrics["accuracy_shuffled"]
    return Judged(answers, shuffled.texts if shuffled else [], scores, against, signal, lengths, metrics)


# Dynamic sampling: where all answers of a group earn the same, further questions take its place.


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
