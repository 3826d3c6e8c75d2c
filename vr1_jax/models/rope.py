"""Rotary embeddings. Angles, sines and the rotation itself are fp32: bf16 cannot tell position 256 from 257."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vr1_jax.models.config import TextConfig, VisionConfig


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
