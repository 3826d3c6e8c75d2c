"""The model families, chosen by the `model_type` of config.json. A new one is a line here."""

import functools
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vr1_jax.errors import UsageError
from vr1_jax.models.base import Model
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.qwen25vl import Qwen25VL

FAMILIES: dict[str, type[Model]] = {family.MODEL_TYPE: family for family in (Qwen25VL,)}


def family_of(config: ModelConfig) -> type[Model]:
    return FAMILIES[config.model_type]


def parse_hf_config(hf: dict[str, Any]) -> ModelConfig:
    """From the content of config.json, in either layout in the wild."""
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = " or ".join(f"{name!r} ({family.NAME})" for name, family in FAMILIES.items())
        raise UsageError(f"model_type is {reprlib.repr(kind)}; this program runs {known}")
    return FAMILIES[kind].parse_config(hf)


def build(config: ModelConfig, key: jax.Array, dtype: DTypeLike = jnp.float32) -> Model:
    """A model with random weights."""
    return family_of(config)(config, key, dtype)


def abstract_model(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Model:
    """Shapes, dtypes and axes of every parameter, without allocating any."""
    return jax.eval_shape(functools.partial(build, config, dtype=dtype), jax.random.key(0))
