"""The vision tower: patches of temporal slices to visual units, slices as a batch axis.

Patches attend within their slice only, in every layer, so slices never meet here. Most layers attend within
a window of the slice: one mask does it, and the reference's permutation into window order is not needed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from vr1_jax.models import attention, layers
from vr1_jax.models.config import VisionConfig
from vr1_jax.sharding import shard
from vr1_jax.types import Prompt

_EPS = 1e-6

# CLIP's statistics, in 0..255: what every Qwen2.5-VL processor subtracts and divides by.
_PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
_PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255


class VisionLayers(nnx.Module):
    def __init__(self, config: VisionConfig, key: jax.Array, dtype: DTypeLike):
        declare = layers.Declare(key, dtype, config.layers)
        embed, mlp = ("embed", config.width), ("mlp", config.mlp)
        heads, head_dim = ("heads", config.heads), (None, config.head_dim)
        self.attention_norm = declare(embed, init=layers.ones)
        self.qkv = declare(embed, (None, 3), heads, head_dim)
        self.qkv_bias = declare((None, 3), heads, head_dim, init=layers.zeros)
        self.out = declare(heads, head_dim, embed)
        self.out_bias = declare(embed, init=layers.zeros)
        self.mlp_norm = declare(embed, init=layers.ones)
        self.gate = declare(embed, mlp)
        self.gate_bias = declare(mlp, init=layers.zeros)
        self.up = declare(embed, mlp)
        self.up_bias = declare(mlp, init=layers.zeros)
        self.down = declare(mlp, embed)
        self.down_bias = declare(embed, init=layers.zeros)


class Vision(nnx.Module):
    def __init__(self, config: VisionConfig, key: jax.Array, dtype: DTypeLike):
        own, stack = jax.random.split(key)
        declare = layers.Declare(own, dtype)
        merged = config.width * config.merge**2
        side = (None, config.patch)
        self.patch_embed = declare(
            (None, config.channels), (None, config.temporal), side, side, ("embed", config.width)
        )
        self.layers = VisionLayers(config, stack, dtype)
        self.merger_norm = declare(("embed", config.width), init=layers.ones)
        self.merger_in = declare(("embed", merged), ("mlp", merged))
        self.merger_in_bias = declare(("mlp", merged), init=layers.zeros)
        self.merger_out = declare(("mlp", merged), ("embed", config.out_width))
        self.merger_out_bias = declare(("embed", config.out_width), init=layers.zeros)


def visual_units(vision: Vision, prompt: Prompt, config: VisionConfig) -> Float[Array, "B U D"]:
    """All units of a prompt, row-major over (slice, unit); units of padding patches hold noise."""
    if not prompt.patches.size:  # a bucket of texts: one unit of zeros, which no slot asks for
        return jnp.zeros((prompt.patches.shape[0], 1, config.out_width), vision.merger_out[...].dtype)
    x = embed_patches(vision, prompt.patches, config)
    angles = layers.vision_angles(prompt.patch_coords, config)
    real = prompt.patch_windows >= 0
    same_slice = jnp.broadcast_to(real[..., None, :], (*real.shape, real.shape[-1]))
    same_window = prompt.patch_windows[..., None, :] == prompt.patch_windows[..., :, None]

    @jax.checkpoint
    def body(x, layer_and_scope):
        layer, full = layer_and_scope
        return block(layer, x, angles, jnp.where(full, same_slice, same_window & same_slice)), None

    full = np.isin(np.arange(config.layers), config.full_attention_layers)
    x, _ = jax.lax.scan(body, x, (vision.layers, full))
    units = merge_patches(vision, x, config)
    return units.reshape(units.shape[0], -1, units.shape[-1])


def normalize_patches(patches: UInt8[Array, "*rows R"], config: VisionConfig) -> Float[Array, "*rows R"]:
    """(pixel / 255 - mean) / std in fp32. R is (channel, frame, row, column)."""
    values_per_channel = config.patch_values // config.channels
    mean, std = (np.repeat(x, values_per_channel) for x in (_PIXEL_MEAN, _PIXEL_STD))
    return (patches.astype(jnp.float32) - mean) / std


def embed_patches(
    vision: Vision, patches: UInt8[Array, "B M P R"], config: VisionConfig
) -> Float[Array, "B M P W"]:
    weight = vision.patch_embed[...].reshape(config.patch_values, config.width)
    x = normalize_patches(patches, config).astype(weight.dtype)
    return shard(x @ weight, "batch", None, None, None)


def block(layer: VisionLayers, x, angles, mask):
    h = layers.rms_norm(x, layer.attention_norm[...], _EPS)
    qkv = layers.linear("BMPD,DcNH->cBMPNH", h, layer.qkv) + layer.qkv_bias[...][:, None, None, None]
    q, k, v = shard(qkv, None, "batch", None, None, "heads", None)
    h = attention.windowed(layers.rotate(q, angles), layers.rotate(k, angles), v, mask)
    out = layers.linear("BMPNH,NHD->BMPD", h, layer.out) + layer.out_bias[...]
    x = x + shard(out, "batch", None, None, None)
    h = layers.rms_norm(x, layer.mlp_norm[...], _EPS)
    gate, up = (layers.linear("BMPD,DF->BMPF", h, matrix) for matrix in (layer.gate, layer.up))
    h = shard(jax.nn.silu(gate + layer.gate_bias[...]) * (up + layer.up_bias[...]), "batch", None, None, "mlp")
    down = layers.linear("BMPF,FD->BMPD", h, layer.down) + layer.down_bias[...]
    return x + shard(down, "batch", None, None, None)


def merge_patches(vision: Vision, x: Float[Array, "B M P W"], config: VisionConfig) -> Float[Array, "B M Unit D"]:
    x = layers.rms_norm(x, vision.merger_norm[...], _EPS)
    x = x.reshape(*x.shape[:2], x.shape[2] // config.merge**2, config.merge**2 * config.width)
    x = jax.nn.gelu(x @ vision.merger_in[...] + vision.merger_in_bias[...], approximate=False)
    x = shard(x, "batch", None, None, "mlp")
    return shard(x @ vision.merger_out[...] + vision.merger_out_bias[...], "batch", None, None, None)
