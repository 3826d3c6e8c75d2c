"""What training keeps: its shapes and places, and how it begins."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vr1_jax.config import TrainConfig
from vr1_jax.models.adapters import add_adapters
from vr1_jax.models.base import Model, unstack
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.families import build
from vr1_jax.sharding import TRAIN_RULES, abstract, reshard
from vr1_jax.training.steps import cast, init_state
from vr1_jax.types import TrainState
from vr1_jax.weights.loading import load_model


def abstract_state(
    config: TrainConfig, model_config: ModelConfig, mesh: Mesh, *, apart: bool = True
) -> TrainState:
    """Shapes, dtypes and places of all that training keeps, without any of it; of LoRA with its layers apart."""

    def blank() -> TrainState:
        model = build(model_config, jax.random.key(0))
        if config.lora.rank:
            model = add_adapters(cast(model, config.compute_dtype), config.lora, jax.random.key(0))
            model = unstack(model) if apart else model
        return init_state(model, config.optimizer)

    return abstract(jax.eval_shape(blank), TRAIN_RULES, mesh)


def adapted_model(config: TrainConfig, mesh: Mesh, begun: int | None) -> Model:
    """The model that a LoRA run adapts, in the precision of its arithmetic, with new adapters.

    Its layers are apart from the first: training and sampling then share every array of it.
    """
    model, _ = load_model(config.model, dtype=jnp.dtype(config.compute_dtype), mesh=mesh, step=begun)
    model = add_adapters(model, config.lora, jax.random.fold_in(jax.random.key(config.seed), 2))
    return reshard(unstack(model, free=True), TRAIN_RULES, mesh)


def fresh_state(
    config: TrainConfig, model_config: ModelConfig, like: TrainState, mesh: Mesh, begun: int | None
) -> TrainState:
    where = jax.tree.map(lambda x: x.sharding, like)
    if config.from_scratch:
        make = jax.jit(lambda key: init_state(build(model_config, key), config.optimizer), out_shardings=where)
        return make(jax.random.key(config.seed))
    if config.lora.rank:
        model = adapted_model(config, mesh, begun)
    else:
        model, _ = load_model(config.model, dtype=jnp.float32, mesh=mesh, step=begun)
    return jax.jit(lambda m: init_state(m, config.optimizer), out_shardings=where, donate_argnums=0)(model)
