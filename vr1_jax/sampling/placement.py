"""Where the policy lies while it samples."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vr1_jax.models.base import Model
from vr1_jax.sharding import ROLLOUT_RULES, shardings


def rollout_params(model: Model, mesh: Mesh, dtype: DTypeLike = jnp.bfloat16) -> Model:
    """The weights to sample with, once per step: cast where they lie, then moved.

    In this order half the bytes travel, and no fp32 copy is ever whole on a device. `mesh` holds the same
    devices as the training mesh, but may split them otherwise: a larger `tensor` leaves more room for caches.
    """
    cast = _cast(model, dtype)
    return moving(cast, mesh)(cast)


def moving(model: Model, mesh: Mesh) -> jax.stages.Wrapped:
    """The program that moves weights from device to device; `device_put` would take them through the host."""
    return jax.jit(_same, out_shardings=shardings(model, ROLLOUT_RULES, mesh))


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(model: Model, dtype: DTypeLike) -> Model:
    return jax.tree.map(lambda x: x.astype(dtype), model)


def _same(model: Model) -> Model:
    return model
