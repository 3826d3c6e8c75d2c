"""AdamW with a scheduled learning rate and a clipped global norm, whole or in less memory."""

from typing import Any, Literal

import jax
import optax

from vr1_jax.config import OptimizerConfig
from vr1_jax.models.adapters import has_adapters, is_adapter
from vr1_jax.training.moments import scale_by_factored_rms, scale_by_int8_adam


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
    adapters = has_adapters(model)

    def is_trained(path: tuple[Any, ...]) -> bool:
        if adapters:
            return is_adapter(path)
        return not (config.freeze_vision and jax.tree_util.keystr(path).startswith(".vision"))

    return jax.tree.map_with_path(lambda path, x: x if is_trained(path) else None, model)


def with_frozen(part: Any, model: Any) -> Any:
    """The whole model again: what is trained from `part`, the rest from `model`."""
    return jax.tree.map(lambda new, old: old if new is None else new, part, model, is_leaf=lambda x: x is None)


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
