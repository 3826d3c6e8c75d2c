"""From sampled answers to an Experience: read them, judge them, compare them within their group.

Each process judges the rows it holds; only [B G] tables of advantages go back to the devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Key

from vr1_jax.models.base import Model
from vr1_jax.rewards.scoring import RewardFunction, Scores, score_groups
from vr1_jax.rl.advantages import GroupSignal, GRPOConfig, combine
from vr1_jax.sampling.generate import Limits, Plan, generate, row_keys, split_groups
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.sharding import batch_sharding
from vr1_jax.types import Completion, Prompt


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


@dataclass(frozen=True)
class Sampler:
    """Draws groups of answers. What a row draws depends on the seed, the step and its own number only."""

    mesh: Mesh
    stop_tokens: tuple[int, ...]
    pad_token: int
    seed: Key[Array, ""]

    def __call__(
        self,
        policy: Model,
        arrays: Sequence[dict[str, np.ndarray]],
        groups: tuple[int, ...],
        config: SamplingConfig,
        row_ids: np.ndarray,
        step: int,
    ) -> list[Completion]:
        """groups[n] answers to each prompt of arrays[n]: ordered and shuffled frames in one call."""
        plan = Plan.of(config, groups, self.stop_tokens, self.pad_token)
        with jax.set_mesh(self.mesh):
            prompts = tuple(place(part, self.mesh) for part in arrays)
            rows = np.arange(sum(groups), dtype=np.int32)
            ids = place_rows(row_ids[:, None].astype(np.int32) * np.int32(len(rows)) + rows, self.mesh)
            keys = row_keys(self.seed, step, ids)
            active = jnp.ones_like(ids, bool)
            return split_groups(generate(policy, prompts, active, keys, Limits.of(config), plan), groups)


def place(arrays: dict[str, np.ndarray], mesh: Mesh) -> Prompt:
    """A global batch from the rows of this process."""
    return Prompt(**place_rows(arrays, mesh))


def place_rows(tree: Any, mesh: Mesh) -> Any:
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def local_rows(x: jax.Array) -> np.ndarray:
    """The rows of a batch-sharded array that this process holds, in order, each once."""
    by_start = {(shard.index[0].start or 0): shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(by_start[start]) for start in sorted(by_start)])


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
