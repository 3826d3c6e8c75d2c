"""Qwen2.5-VL: the entry points, all made of the same blocks.

    forward               prompt tokens -> hidden states            scoring, SFT, parity
    forward_completions   one prompt, G completions -> hidden       losses: the prompt is computed once
    prefill               prompt tokens -> last hidden state and keys and values
    decode                one token of every completion -> hidden   sampling

Hidden states come back normalised; `logits` turns the ones that matter into vocabulary scores.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vr1_jax.models import attention, layers, rope, text, vision
from vr1_jax.models.config import ModelConfig
from vr1_jax.types import KVCache, Prompt


class Qwen25VL(nnx.Module):
    """Parameters of both towers, and the config they were built from (static: part of the tree's structure)."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: DTypeLike = jnp.float32):
        vision_key, text_key = jax.random.split(key)
        self.config = config
        self.vision = vision.Vision(config.vision, vision_key, dtype)
        self.text = text.Text(config.text, text_key, dtype)


def abstract_model(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Qwen25VL:
    """Shapes, dtypes and axes of every parameter, without allocating any."""
    return jax.eval_shape(functools.partial(Qwen25VL, config, dtype=dtype), jax.random.key(0))


def embed_prompt(model: Qwen25VL, prompt: Prompt) -> Float[Array, "B T D"]:
    """Token embeddings, with visual units in the slots that ask for one."""
    units = vision.visual_units(model.vision, prompt, model.config.vision)
    words = text.embed_tokens(model.text, prompt.tokens)
    filled = jnp.take_along_axis(units, jnp.maximum(prompt.visual_slots, 0)[..., None], axis=1)
    return jnp.where((prompt.visual_slots >= 0)[..., None], filled, words)


def forward(model: Qwen25VL, prompt: Prompt) -> Float[Array, "B T D"]:
    def attend(q, k, v):
        return attention.causal(q, k, v, prompt.mask), None

    hidden, _ = _decoder(model, embed_prompt(model, prompt), prompt.positions, attend)
    return hidden


def forward_completions(model: Qwen25VL, prompt: Prompt, tokens: Int[Array, "B G C"]) -> Float[Array, "B G C D"]:
    """The hidden state from which each completion token is predicted.

    Prompt and completions travel as one sequence [T + G*C], so every matmul sees them together; only
    attention takes them apart. The first token of a completion is predicted by the last of the prompt.
    """
    batch, groups, length = tokens.shape
    prompt_length = prompt.tokens.shape[1]
    x = jnp.concatenate(
        [embed_prompt(model, prompt), text.embed_tokens(model.text, tokens.reshape(batch, -1))], axis=1
    )
    offsets = jnp.tile(jnp.arange(length), groups)
    after = jnp.broadcast_to((prompt.next_position[:, None] + offsets)[:, None], (batch, 3, groups * length))
    positions = jnp.concatenate([prompt.positions, after], axis=2)

    def attend(q, k, v):
        (q_prompt, q), (k_prompt, k), (v_prompt, v) = (_split(x, prompt_length, groups) for x in (q, k, v))
        seen = attention.causal(q_prompt, k_prompt, v_prompt, prompt.mask)
        out = attention.grouped(q, k, v, k_prompt, v_prompt, prompt.mask)
        return jnp.concatenate([seen, out.reshape(batch, groups * length, *out.shape[3:])], axis=1), None

    hidden, _ = _decoder(model, x, positions, attend)
    of_prompt, of_completions = _split(hidden, prompt_length, groups)
    first = jnp.broadcast_to(of_prompt[:, None, -1:], (batch, groups, 1, hidden.shape[-1]))
    return jnp.concatenate([first, of_completions[:, :, :-1]], axis=2)


def prefill(model: Qwen25VL, prompt: Prompt) -> tuple[Float[Array, "B D"], KVCache]:
    """The last hidden state, from which the first token is sampled, and the prompt's keys and values."""

    def attend(q, k, v):
        return attention.causal(q, k, v, prompt.mask), KVCache(k, v)

    hidden, cache = _decoder(model, embed_prompt(model, prompt), prompt.positions, attend)
    return hidden[:, -1], cache


def empty_cache(config: ModelConfig, batch: int, groups: int, slots: int, dtype: DTypeLike) -> KVCache:
    shape = (config.text.layers, batch, groups, slots, config.text.kv_heads, config.text.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def decode(
    model: Qwen25VL,
    prompt: Prompt,
    prompt_cache: KVCache,
    cache: KVCache,
    tokens: Int[Array, "B G"],
    step: Int[Array, ""],
) -> tuple[Float[Array, "B G D"], KVCache]:
    """Feed token number `step` of every completion; the hidden state predicts the next one.

    The cache travels in the scan's carry: as scanned input and output it would be copied whole each token.
    """
    batch, groups = tokens.shape
    x = text.embed_tokens(model.text, tokens)
    positions = jnp.broadcast_to((prompt.next_position + step)[:, None, None], (batch, 3, groups))
    angles = rope.text_angles(positions, model.config.text)

    def body(carry, inputs):
        x, cache = carry
        layer, of_prompt, index = inputs

        def attend(q, k, v):
            q, k, v = (x.reshape(batch, groups, 1, *x.shape[2:]) for x in (q, k, v))
            keys = _write(cache.keys, k, index, step)
            values = _write(cache.values, v, index, step)
            out = attention.decode(
                q, keys[index], values[index], of_prompt.keys, of_prompt.values, prompt.mask, step
            )
            return out.reshape(batch, groups, *out.shape[3:]), KVCache(keys, values)

        return text.block(layer, x, angles, attend, model.config.text.norm_eps), None

    layer_index = jnp.arange(model.config.text.layers)
    (x, cache), _ = jax.lax.scan(body, (x, cache), (model.text.layers, prompt_cache, layer_index))
    return layers.rms_norm(x, model.text.norm[...], model.config.text.norm_eps), cache


def logits(model: Qwen25VL, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    return text.logits(model.text, hidden)


def _decoder(model: Qwen25VL, x, positions, attend: text.Attend):
    config = model.config.text
    angles = rope.text_angles(positions, config)

    @jax.checkpoint
    def body(x, layer):
        return text.block(layer, x, angles, attend, config.norm_eps)

    x, extras = jax.lax.scan(body, x, model.text.layers)
    return layers.rms_norm(x, model.text.norm[...], config.norm_eps), extras


def _split(x, prompt_length: int, groups: int):
    """[B, T + G*C, ...] -> [B, T, ...] and [B, G, C, ...]."""
    rest = x[:, prompt_length:]
    return x[:, :prompt_length], rest.reshape(x.shape[0], groups, -1, *x.shape[2:])


def _write(cache, new, layer, step):
    return jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), (layer, 0, 0, step, 0, 0))
