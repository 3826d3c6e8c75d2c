"""AdamW with a scheduled learning rate and a clipped global norm, whole or in less memory."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from vr1_jax.training.moments import scale_by_factored_rms, scale_by_int8_adam


class OptimizerError(ValueError):
    """Optimizer settings that make no sense; the message names the field."""


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    # Updates until linear and cosine end, which may be more than a run makes: upstream's cosine spanned an epoch
    # of which it trained a sixtieth. None for constant, which has no end.
    total_steps: int | None = None
    warmup_steps: int = 0  # updates; the first has rate 0, as in transformers
    final_fraction: float = 0.0  # of the learning rate, at the end of linear and cosine
    weight_decay: float = 0.01
    # matrices: all but norms and biases. upstream: its trainer spared biases and the decoder layers' norms,
    # but decayed the vision tower's norms and the final norm.
    decayed: Literal["matrices", "upstream"] = "matrices"
    clip_norm: float = 5.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    # What Adam remembers of past gradients, beside 4 bytes of weight and 4 of gradient for each parameter:
    # float32 (8 bytes more), int8 (2) or factored (none to speak of, and no first moment: b1 means nothing).
    moments: Literal["float32", "int8", "factored"] = "float32"
    freeze_vision: bool = False  # neither update nor gradient nor moments for the vision tower

    def __post_init__(self):
        if (self.schedule == "constant") != (self.total_steps is None):
            raise OptimizerError(
                f"total_steps is {self.total_steps} and schedule {self.schedule}: linear and cosine need a number "
                "there, constant needs None"
            )
        if self.warmup_steps < 0:
            raise OptimizerError(f"warmup_steps is {self.warmup_steps}; it must not be negative")
        if self.total_steps is not None and not max(1, self.warmup_steps) <= self.total_steps:
            raise OptimizerError(
                f"total_steps is {self.total_steps}; it must be at least 1 and not less than warmup_steps, which "
                f"is {self.warmup_steps}"
            )
        for name in ("learning_rate", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise OptimizerError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.weight_decay < 0:
            raise OptimizerError(f"weight_decay is {self.weight_decay}; it must not be negative")


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """The rate of each update, counted from 0; transformers' schedules of the same names have the same rates."""
    peak, steps = config.learning_rate, (config.total_steps or 0) - config.warmup_steps or 1
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_fraction, steps)
    else:
        after = optax.cosine_decay_schedule(peak, steps, config.final_fraction)
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _scale(config),
        _decay_weights(config),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def _scale(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.moments == "int8":
        return scale_by_int8_adam(config.b1, config.b2, config.eps)
    if config.moments == "factored":
        return scale_by_factored_rms(config.b2, config.eps)
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def trained(model: Any, config: OptimizerConfig) -> Any:
    """The model with None in place of what is frozen: gradients and moments have this structure."""
    return jax.tree.map_with_path(lambda path, x: None if _is_frozen(path, config) else x, model)


def with_frozen(part: Any, model: Any) -> Any:
    """The whole model again: what is trained from `part`, the rest from `model`."""
    return jax.tree.map(lambda new, old: old if new is None else new, part, model, is_leaf=lambda x: x is None)


def _is_frozen(path: tuple[Any, ...], config: OptimizerConfig) -> bool:
    return config.freeze_vision and jax.tree_util.keystr(path).startswith(".vision")


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
