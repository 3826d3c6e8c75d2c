"""LoRA: small trained matrices beside large frozen ones, which then need no gradients, moments or fp32."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vr1_jax.errors import UsageError
from vr1_jax.models.base import Model
from vr1_jax.models.config import LoraConfig, ModelConfig
from vr1_jax.models.layers import Adapted
from vr1_jax.models.mapping import Rule


def adapted_rules(family: type[Model], config: ModelConfig, lora: LoraConfig) -> list[Rule]:
    """Of the matrices that get an adapter; UsageError names a target that no layer has."""
    matrices = {
        rule: rule.path.split(".") for rule in family.rules(config) if rule.stacked and len(rule.theirs) == 2
    }
    names = {name for _, _, name in matrices.values()}
    if unknown := sorted(set(lora.targets) - names):
        raise UsageError(f"lora.targets: {', '.join(unknown)}: use some of {', '.join(sorted(names))}")
    towers = ("text", "vision") if lora.vision else ("text",)
    found = [rule for rule, (tower, _, name) in matrices.items() if name in lora.targets and tower in towers]
    if not found:
        raise UsageError(f"lora.targets {' '.join(lora.targets)}: the decoder has none of them; set lora.vision")
    return found


def add_adapters(model: Model, lora: LoraConfig, key: jax.Array) -> Model:
    """The model (layers stacked) with adapters in fp32 that change nothing yet: A random as in PEFT, B zero."""
    model = copy.copy(model)
    for name in ("text", "vision"):
        tower = copy.copy(getattr(model, name))
        tower.layers = copy.copy(tower.layers)
        setattr(model, name, tower)
    rules = adapted_rules(type(model), model.config, lora)
    for rule, own in zip(rules, jax.random.split(key, len(rules)), strict=True):
        tower, _, name = rule.path.split(".")
        stacked = getattr(model, tower).layers
        base, inputs = getattr(stacked, name), 1 + len(rule.theirs[1])  # after the layers' axis
        shape, axes = base.get_value().shape, base.get_metadata("axes")
        bound = 1 / jnp.sqrt(jnp.prod(jnp.array(shape[1:inputs])))
        a = jax.random.uniform(own, (*shape[:inputs], lora.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((shape[0], lora.rank, *shape[inputs:]), jnp.float32)
        a, b = nnx.Param(a, axes=(*axes[:inputs], None)), nnx.Param(b, axes=(None, None, *axes[inputs:]))
        setattr(stacked, name, Adapted(base, a, b, lora.scale))
    return model


def without_adapters(model: Model) -> Model:
    """The model as it was: the reference of a LoRA run, in the same memory."""
    return jax.tree.map(lambda x: x.base if _is_adapted(x) else x, model, is_leaf=_is_adapted)


def has_adapters(model: Any) -> bool:
    return any(_is_adapted(x) for x in jax.tree.leaves(model, is_leaf=_is_adapted))


def is_adapter(path: tuple[Any, ...]) -> bool:
    """Whether the array at this path of a model is part of an adapter."""
    return ".lora_" in jax.tree_util.keystr(path)


def _is_adapted(node: Any) -> bool:
    return isinstance(node, Adapted)
