"""Where the policy lies while it samples."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.sharding import ROLLOUT_RULES, shardings


def rollout_params(model: Qwen25VL, mesh: Mesh, dtype: DTypeLike = jnp.bfloat16) -> Qwen25VL:
    """The weights to sample with, once per step: cast where they lie, then moved.

    In this order half the bytes travel, and no fp32 copy is ever whole on a device. `mesh` holds the same
    devices as the training mesh, but may split them otherwise: a larger `tensor` leaves more room for caches.
    """
    cast = _cast(model, dtype)
    return moving(cast, mesh)(cast)


def moving(model: Qwen25VL, mesh: Mesh) -> jax.stages.Wrapped:
    """The program that moves weights from device to device; `device_put` would take them through the host."""
    return jax.jit(_same, out_shardings=shardings(model, ROLLOUT_RULES, mesh))


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(model: Qwen25VL, dtype: DTypeLike) -> Qwen25VL:
    return jax.tree.map(lambda x: x.astype(dtype), model)


def _same(model: Qwen25VL) -> Qwen25VL:
    return model
