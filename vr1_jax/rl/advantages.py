"""From scores to advantages: T-GRPO's temporal bonus, the length bonus, and normalisation within a group.

Everything here runs on the host, on [B G] tables of a few hundred numbers: numpy, in float64. Inputs may be
lists, numpy or jax arrays. GRPO is the case without shuffled rows.

Dividing by the group's standard deviation nearly cancels a bonus that every correct answer shares. With
rewards of 0 and 1 the bonus multiplies them by 1.3, and the factor divides out, but for the 1e-4;
`temporal_signal` measures what is left. Two ways out, both in `GRPOConfig`: add the bonus after normalisation
(`placement="advantage"`), or leave out the division (`normalize_std=False`).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from vr1_jax.errors import UsageError

Real = int | float
Values = jax.Array | np.ndarray | Sequence

STD_EPSILON = 1e-4
# Means of equal rewards over groups of different sizes differ in their last bits; that is not "worse".
_ROUNDING = 1e-9


@dataclass(frozen=True)
class GRPOConfig:
    """The algorithm's settings, rewards to loss. The classmethods are the presets."""

    rules: Literal["fixed", "upstream"] = "fixed"  # how the accuracy reward reads answers; upstream has quirks
    threshold: float = 0.5  # an answer is correct if its accuracy is above this
    alpha: float = 0.3  # size of the temporal bonus; 0 turns it off
    mu: float = 1.0  # the bonus needs the ordered group to do at least mu times as well as the shuffled group
    p: Literal["share", "mean"] = "share"  # groups are compared by share of correct answers or mean accuracy
    placement: Literal["reward", "advantage"] = "reward"  # where the temporal bonus is added
    normalize_std: bool = True  # divide advantages by the standard deviation of the group's rewards
    length_bonus: float = 0.2  # added to correct answers of length_low to length_high tokens; 0 turns it off
    length_low: int = 320  # fewest tokens for the length bonus
    length_high: int = 512  # most tokens for the length bonus
    format_weight: float = 1.0  # weight of the format reward; reward functions of your own return what they weigh
    overlong: int = 0  # tokens before the limit over which a penalty grows from 0 to -1 (DAPO); 0 turns it off
    mask_cut_off: bool = False  # leave answers that reached the limit without an end out of the loss
    clip_low: float = 0.2  # the ratio of new to old probability is clipped below 1 - clip_low
    clip_high: float = 0.2  # the ratio of new to old probability is clipped above 1 + clip_high
    beta: float = 0.04  # weight of the KL penalty (k3); 0 needs no reference model
    # How tokens are averaged. sequence: mean over answers of each answer's mean. token: mean over all tokens.
    # constant: sum over tokens, divided by the number of answers times their padded length.
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    ratio: Literal["token", "sequence"] = "token"  # the ratio is each token's, or its answer's geometric mean
    dual_clip: float = 0.0  # bound of the ratio where the advantage is negative, above 1; 0 turns it off
    sampler_cap: float = 0.0  # most that the sampler's difference to the trainer can weigh a token; 0 turns it off

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, Real) and not 0 <= value < np.inf:
                raise UsageError(f"{name} is {value}; it must not be negative or infinite")
        if 0 < self.dual_clip <= 1:
            raise UsageError(f"dual_clip is {self.dual_clip}; it must be above 1, or 0 for none")
        if not 0 <= self.threshold < 1:
            raise UsageError(f"threshold is {self.threshold}; it must be in [0, 1), as accuracies are")
        if self.length_low > self.length_high:
            raise UsageError(f"length_low {self.length_low} is above length_high {self.length_high}")
        for field in dataclasses.fields(self):
            allowed, value = getattr(field.type, "__args__", None), getattr(self, field.name)
            if allowed and value not in allowed:
                raise UsageError(f"{field.name} is {value!r}; use one of: {', '.join(allowed)}")

    @classmethod
    def paper(cls) -> "GRPOConfig":
        """As the paper describes it."""
        return cls()

    @classmethod
    def upstream(cls) -> "GRPOConfig":
        """As Video-R1's published code does it."""
        return cls(rules="upstream", threshold=0.1, mu=0.8, p="mean")

    @classmethod
    def fixed(cls) -> "GRPOConfig":
        """The paper's, with the temporal bonus where normalisation cannot cancel it."""
        return cls(placement="advantage")


def temporal_bonus(
    ordered: Values,
    shuffled: Values,
    *,
    alpha: Real = 0.3,
    mu: Real = 1.0,
    threshold: Real = 0.5,
    p: str = "share",
    is_video: Values | bool,
) -> Float[np.ndarray, "B G"]:
    """`alpha` for each correct ordered answer to a video, if its group does at least `mu` times as well.

    `ordered` [B G] and `shuffled` [B G'] are accuracies, `is_video` is [B]. Without shuffled rows (G' = 0)
    there is nothing to compare with and no bonus. What stands in an image's shuffled rows does not matter.
    """
    if p not in ("share", "mean"):
        raise UsageError(f"p is {p!r}; use one of: share, mean")
    correct, shuffled_correct = _is_correct(ordered, threshold), _is_correct(shuffled, threshold)
    ordered, shuffled = _table("ordered", ordered), _table("shuffled", shuffled)
    if shuffled.shape[0] != ordered.shape[0]:
        raise UsageError(f"{ordered.shape[0]} ordered groups but {shuffled.shape[0]} shuffled groups")
    if shuffled.shape[1] == 0:
        return np.zeros_like(ordered)
    if p == "share":
        level, shuffled_level = correct.mean(1), shuffled_correct.mean(1)
    else:
        level, shuffled_level = ordered.mean(1), shuffled.mean(1)
    earned = (level >= mu * shuffled_level - _ROUNDING) & np.asarray(is_video, dtype=bool)
    return np.where(correct & earned[:, None], float(alpha), 0.0)


def length_bonus(
    correct: Values, lengths: Values, *, low: int = 320, high: int = 512, bonus: Real = 0.2
) -> Float[np.ndarray, "B G"]:
    """`bonus` for each correct answer of `low` to `high` tokens, if the group has more than one correct."""
    correct, lengths = _table("correct", correct) != 0, _table("lengths", lengths)
    if correct.shape != lengths.shape:
        raise UsageError(f"correct is {correct.shape} but lengths is {lengths.shape}")
    several = correct.sum(1, keepdims=True) > 1
    within = (low <= lengths) & (lengths <= high)
    return np.where(correct & several & within, float(bonus), 0.0)


def overlong_penalty(lengths: Values, *, limit: int, cache: int) -> Float[np.ndarray, "B G"]:
    """DAPO's: 0 up to `limit - cache` tokens, from there linearly down to -1 at the limit; cache 0 is none."""
    lengths = _table("lengths", lengths)
    return -np.clip((lengths - (limit - cache)) / cache, 0.0, 1.0) if cache else np.zeros_like(lengths)


def group_advantages(rewards: Values, *, normalize_std: bool = True) -> Float[np.ndarray, "B G"]:
    """Rewards less their group's mean, over the unbiased standard deviation plus 1e-4.

    Equal rewards give exactly 0, whatever their value. So does a group of one: nothing to compare it with.
    """
    rewards = _table("rewards", rewards)
    centred = rewards - rewards[:, :1]  # makes a constant group exactly 0, not its mean's rounding
    centred = centred - centred.mean(1, keepdims=True)
    if not normalize_std or rewards.shape[1] == 1:
        return centred
    return centred / (centred.std(1, ddof=1, keepdims=True) + STD_EPSILON)


@dataclass(frozen=True)
class GroupSignal:
    """What a batch of groups teaches."""

    rewards: Float[np.ndarray, "B G"]  # all that enters normalisation
    advantages: Float[np.ndarray, "B G"]
    has_signal: Bool[np.ndarray, " B"]  # groups of all-zero advantages teach nothing: drop or refill them
    metrics: dict[str, float]
    bonuses: dict[str, Float[np.ndarray, "B G"]]  # "length", "temporal" (wherever it was added), "overlong" if on


def combine(
    config: GRPOConfig,
    accuracy: Values,
    other: Values,
    lengths: Values,
    *,
    shuffled: Values | None = None,
    is_video: Values | bool = False,
    limit: int = 0,
) -> GroupSignal:
    """Rewards and advantages of a batch, as the config composes them.

    `accuracy` judges correctness; `other` (format and user rewards) is added to it; `shuffled` [B G'] holds
    the accuracies with shuffled frames, None for GRPO; `limit` is the most tokens an answer may have.
    """
    correct = _is_correct(accuracy, config.threshold)
    accuracy = _table("accuracy", accuracy)
    shuffled = accuracy[:, :0] if shuffled is None else shuffled
    is_video = np.broadcast_to(np.asarray(is_video, dtype=bool), accuracy.shape[:1])
    base = accuracy + _table("other", other)
    for_length = length_bonus(
        correct, lengths, low=config.length_low, high=config.length_high, bonus=config.length_bonus
    )
    too_long = overlong_penalty(lengths, limit=limit, cache=config.overlong)
    base = base + for_length + too_long
    bonus = temporal_bonus(
        accuracy,
        shuffled,
        alpha=config.alpha,
        mu=config.mu,
        threshold=config.threshold,
        p=config.p,
        is_video=is_video,
    )
    plain = group_advantages(base, normalize_std=config.normalize_std)
    if config.placement == "reward":
        rewards = base + bonus
        advantages = group_advantages(rewards, normalize_std=config.normalize_std)
    else:
        rewards, advantages = base, plain + bonus
    has_signal = np.any(advantages != 0, axis=1)
    metrics = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(1, ddof=1).mean() if rewards.shape[1] > 1 else 0.0,
        "accuracy": accuracy.mean(),
        "correct": correct.mean(),
        "all_correct": correct.all(1).mean(),
        "all_wrong": (~correct).all(1).mean(),
        "no_signal": (~has_signal).mean(),
    }
    if is_video.any():
        metrics["temporal_bonus"] = bonus[is_video].mean()
        metrics["temporal_signal"] = temporal_signal(advantages[is_video], plain[is_video])
    bonuses = {"length": for_length, "temporal": bonus}
    if config.overlong:
        metrics["overlong_penalty"], bonuses["overlong"] = too_long.mean(), too_long
    metrics = {name: float(value) for name, value in metrics.items()}
    return GroupSignal(rewards, advantages, has_signal, metrics, bonuses)


def temporal_signal(advantages: Values, plain: Values) -> float:
    """Relative change from the plain advantages to those with the bonus: 0 is no change, 2 at most.

    The change's sum of magnitudes, over the larger of the two sides' own.
    """
    advantages, plain = np.asarray(advantages), np.asarray(plain)
    size = max(np.abs(advantages).sum(), np.abs(plain).sum())
    return float(np.abs(advantages - plain).sum() / size) if size > 0 else 0.0


def _is_correct(accuracy: Values, threshold: Real) -> np.ndarray:
    """Strictly above the threshold in the input's own precision: 0.1 in float32 is not above 0.1."""
    return np.asarray(accuracy) > float(threshold)


def _table(name: str, values: Values) -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise UsageError(f"{name} must be a table of groups [B G], not of shape {table.shape}")
    return table
