"""The pieces both towers are made of. Parameters are declared once: shape, logical axes and init together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Init = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]

matrix: Init = nnx.initializers.normal(stddev=0.02)
ones: Init = nnx.initializers.ones
zeros: Init = nnx.initializers.zeros


class Declare:
    """Declares parameters of one dtype, each with its own random key; with `layers`, stacked L times."""

    def __init__(self, key: jax.Array, dtype: DTypeLike, layers: int | None = None):
        self._key, self._dtype, self._count = key, dtype, 0
        self._leading = () if layers is None else ((None, layers),)

    def __call__(self, *axes: tuple[str | None, int], init: Init = matrix) -> nnx.Param:
        """A parameter whose dimensions are (logical axis, size) pairs; None: never split."""
        self._count += 1
        names, shape = zip(*self._leading, *axes, strict=True)
        return nnx.Param(init(jax.random.fold_in(self._key, self._count), shape, self._dtype), axes=names)


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Computed in fp32 to the end. transformers rounds to bf16 before the weight; this is the closer one."""
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(variance + eps) * weight.astype(jnp.float32)).astype(x.dtype)
