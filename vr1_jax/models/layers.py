"""The pieces both towers are made of. Parameters are declared once: shape, logical axes and init together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vr1_jax.models.config import TextConfig, VisionConfig

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


class Adapted(nnx.Module):
    """A matrix that stays as it is, with a low-rank change beside it (LoRA): x W + scale (x A) B."""

    def __init__(self, base: nnx.Param, lora_a: nnx.Param, lora_b: nnx.Param, scale: float):
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale


def linear(spec: str, x: jax.Array, matrix: nnx.Param | Adapted) -> jax.Array:
    """The einsum of x and the matrix, whose contracted axes come first: `BSD,DNH->BSNH`."""
    if not isinstance(matrix, Adapted):
        return jnp.einsum(spec, x, matrix[...])
    of_x, rest = spec.split(",")
    of_matrix, of_out = rest.split("->")
    contracted = "".join(axis for axis in of_matrix if axis in of_x)
    rows = "".join(axis for axis in of_x if axis not in contracted)
    # Or a GPU's compiler makes one product of both and joins weight and adapter for it, for every token anew.
    apart = jax.lax.optimization_barrier(x)
    low = jnp.einsum(f"{of_x},{contracted}r->{rows}r", apart, matrix.lora_a[...])
    change = jnp.einsum(f"{rows}r,r{of_matrix[len(contracted) :]}->{of_out}", low, matrix.lora_b[...])
    return jnp.einsum(spec, x, matrix.base[...]) + change * jnp.asarray(matrix.scale, change.dtype)


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Computed in fp32 to the end. transformers rounds to bf16 before the weight; this is the closer one."""
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(variance + eps) * weight.astype(jnp.float32)).astype(x.dtype)


# Rotary embeddings. Angles, sines and the rotation itself are fp32: bf16 cannot tell position 256 from 257.


def text_angles(positions: Int[Array, "B 3 S"], config: TextConfig) -> Float[Array, "B S Hhalf"]:
    """mRoPE: each frequency follows one of the three position axes, the lowest ones time."""
    half = config.head_dim // 2
    frequencies = _frequencies(config.rope_theta, half)
    axis = np.repeat(np.arange(3), config.mrope_section)
    return jnp.swapaxes(positions[:, axis], 1, 2).astype(jnp.float32) * frequencies


def vision_angles(coords: Int[Array, "*rows P 2"], config: VisionConfig) -> Float[Array, "*rows P Hhalf"]:
    """Half of the frequencies turn with the patch's row, half with its column."""
    quarter = config.head_dim // 4
    angles = coords[..., None].astype(jnp.float32) * _frequencies(config.rope_theta, quarter)
    return angles.reshape(*coords.shape[:-1], 2 * quarter)


def rotate(x: Float[Array, "*rows S N H"], angles: Float[Array, "*rows S Hhalf"]) -> Float[Array, "*rows S N H"]:
    """Turn the pairs (x[i], x[i + H/2]) by their angles."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _frequencies(theta: float, count: int) -> np.ndarray:
    return (theta ** -(np.arange(count) / count)).astype(np.float32)
