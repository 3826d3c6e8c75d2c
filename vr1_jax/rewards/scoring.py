"""Scores of a batch of completions: accuracy, format and the rewards that users write.

A user's reward is a function in their own config file, and the config holds the function itself:

    def brevity(completion: str, sample) -> float:
        return 1.0 if len(completion) < 2000 else 0.0

`sample` is the record that asked (`sample.solution`, `sample.problem_type`, `sample.options`, ..). What the
function returns is added to the completion's reward.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vr1_jax.errors import UserError
from vr1_jax.rewards.accuracy import accuracy_reward, format_reward

RewardFunction = Callable[[str, Any], float]


@dataclass(frozen=True)
class Scores:
    """Scores of B x G completions. Correctness is judged by `accuracy` alone, before any bonus."""

    accuracy: np.ndarray  # [B G]
    format: np.ndarray  # [B G]
    extra: dict[str, np.ndarray]  # name of a user's reward -> [B G]

    def other(self, format_weight: float = 1.0) -> np.ndarray:
        """Everything that is added to the accuracy."""
        return format_weight * self.format + sum(self.extra.values(), start=np.zeros_like(self.format))


def score_groups(
    completions: Sequence[Sequence[str]],
    samples: Sequence[Any],
    *,
    rules: str = "fixed",
    rewards: Sequence[RewardFunction] = (),
) -> Scores:
    """Scores G completions for each of B samples, every sample by its own problem type."""
    if len(completions) != len(samples):
        raise UserError(f"{len(completions)} groups of completions for {len(samples)} samples")
    check_rewards(rewards)

    def accuracy(completion: str, sample: Any) -> float:
        return accuracy_reward(completion, sample.solution, sample.problem_type, rules=rules)

    def well_formed(completion: str, sample: Any) -> float:
        return format_reward(completion)

    def table(reward: RewardFunction) -> np.ndarray:
        pairs = zip(completions, samples, strict=True)
        return np.asarray([[_finite(reward, text, sample) for text in group] for group, sample in pairs])

    extra = {reward.__name__: table(reward) for reward in rewards}
    return Scores(accuracy=table(accuracy), format=table(well_formed), extra=extra)


def check_rewards(rewards: Sequence[RewardFunction]) -> None:
    """Refuses user rewards whose names would collide in the metrics."""
    names = ["accuracy", "format", *(reward.__name__ for reward in rewards)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two rewards are called {name!r}; rename one of the functions")


def _finite(reward: RewardFunction, text: str, sample: Any) -> float:
    value = float(reward(text, sample))
    if not math.isfinite(value):
        raise UserError(f"the reward {reward.__name__!r} returned {value}; it must return a finite number")
    return value
