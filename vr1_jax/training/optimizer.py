"""AdamW with a warmed-up cosine schedule and a clipped global norm."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax


class OptimizerError(ValueError):
    """Optimizer settings that make no sense; the message names the field."""


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-6
    total_steps: int = 1000
    warmup_steps: int = 0
    final_fraction: float = 0.0  # of the learning rate, at the end of the cosine
    weight_decay: float = 0.01
    # matrices: all but norms and biases. upstream: its trainer spared biases and the decoder layers' norms,
    # but decayed the vision tower's norms and the final norm.
    decayed: Literal["matrices", "upstream"] = "matrices"
    clip_norm: float = 5.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        if self.total_steps < 1 or not 0 <= self.warmup_steps <= self.total_steps:
            raise OptimizerError(
                f"warmup_steps {self.warmup_steps} must lie within total_steps {self.total_steps}"
            )
        for name in ("learning_rate", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise OptimizerError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.weight_decay < 0:
            raise OptimizerError(f"weight_decay is {self.weight_decay}; it must not be negative")


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Linear warmup from one step's worth, then a cosine down to the final fraction."""
    cosine = optax.cosine_decay_schedule(
        config.learning_rate, config.total_steps - config.warmup_steps or 1, config.final_fraction
    )
    if not config.warmup_steps:
        return cosine
    first = config.learning_rate / config.warmup_steps
    warmup = optax.linear_schedule(first, config.learning_rate, config.warmup_steps - 1 or 1)
    return optax.join_schedules([warmup, cosine], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        _decay_weights(config),
        optax.scale_by_learning_rate(schedule(config)),
    )


def is_decayed(path: tuple[Any, ...], decayed: Literal["matrices", "upstream"]) -> bool:
    """Whether weight decay applies to the parameter at this path of the model."""
    name = jax.tree_util.keystr(path)
    if "bias" in name:
        return False
    if decayed == "upstream":
        return not (".text.layers" in name and "norm" in name)
    return "norm" not in name


def _decay_weights(config: OptimizerConfig) -> optax.GradientTransformation:
    def update(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map_with_path(
            lambda path, u, p: u + config.weight_decay * p if is_decayed(path, config.decayed) else u,
            updates,
            params,
        )

    return optax.stateless(update)
