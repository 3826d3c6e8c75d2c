"""Qwen2.5-VL: the entry points, all made of the same blocks.

    forward               prompt tokens -> hidden states            scoring, SFT, parity
    forward_completions   one prompt, G completions -> hidden       losses: the prompt is computed once
    prefill               prompt tokens -> last hidden state, keys and values
    decode                one token of every completion -> hidden   sampling

Hidden states come back normalised; `logits` turns the ones that matter into vocabulary scores.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vr1_jax.models import attention, layers, rope, text, vision
from vr1_jax.models.config import ModelConfig
from vr1_jax.sharding import shard
from vr1_jax.types import KVCache, Prompt, PromptCache


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


def forward_completions(
    model: Qwen25VL, prompt: Prompt, tokens: Int[Array, "B G C"]
) -> tuple[Float[Array, "B T D"], Float[Array, "B G C D"]]:
    """Hidden states of the prompt, and those from which each completion token is predicted.

    Prompt and completions travel as one sequence [T + G*C], so every matmul sees them together; only
    attention takes them apart. The first token of a completion is predicted by the last of the prompt.
    """
    batch, groups, length = tokens.shape
    prompt_length = prompt.tokens.shape[1]
    words = text.embed_tokens(model.text, tokens.reshape(batch, -1))
    x = jnp.concatenate([embed_prompt(model, prompt), words], axis=1)
    offsets = jnp.tile(jnp.arange(length), groups)
    after = jnp.broadcast_to((prompt.next_position[:, None] + offsets)[:, None], (batch, 3, groups * length))
    positions = jnp.concatenate([prompt.positions, after], axis=2)

    def attend(q, k, v):
        (q_prompt, q), (k_prompt, k), (v_prompt, v) = (_take_apart(x, prompt_length, groups) for x in (q, k, v))
        seen = attention.causal(q_prompt, k_prompt, v_prompt, prompt.mask)
        out = attention.grouped(q, k, v, k_prompt, v_prompt, prompt.mask)
        return jnp.concatenate([seen, out.reshape(batch, groups * length, *out.shape[3:])], axis=1), None

    hidden, _ = _decoder(model, x, positions, attend)
    of_prompt, of_completions = _take_apart(hidden, prompt_length, groups)
    first = jnp.broadcast_to(of_prompt[:, None, -1:], (batch, groups, 1, hidden.shape[-1]))
    return of_prompt, jnp.concatenate([first, of_completions[:, :, :-1]], axis=2)


def prefill(model: Qwen25VL, prompt: Prompt) -> tuple[Float[Array, "B D"], PromptCache]:
    """The last hidden state, from which the first token is sampled, and what completions attend to."""

    def attend(q, k, v):
        return attention.causal(q, k, v, prompt.mask), (jnp.moveaxis(k, 1, 3), jnp.swapaxes(v, 1, 2))

    hidden, (keys, values) = _decoder(model, embed_prompt(model, prompt), prompt.positions, attend)
    return hidden[:, -1], PromptCache(keys, values, prompt.mask, prompt.next_position)


def empty_cache(config: ModelConfig, batch: int, rows: int, slots: int, dtype: DTypeLike) -> KVCache:
    text = config.text
    by_head = (text.layers, batch, rows, text.kv_heads)
    keys, values = (*by_head, text.head_dim, slots), (*by_head, slots, text.head_dim)
    return KVCache(*(shard(jnp.zeros(x, dtype), None, "batch", None, "kv_heads") for x in (keys, values)))


def decode(
    model: Qwen25VL,
    prompts: Sequence[PromptCache],
    groups: tuple[int, ...],
    cache: KVCache,
    tokens: Int[Array, "B rows"],
    step: Int[Array, ""],
) -> tuple[Float[Array, "B rows D"], KVCache]:
    """Feed token number `step` of every completion; the hidden state predicts the next one.

    The first groups[0] rows of each batch element continue prompts[0], the next groups[1] continue prompts[1]:
    ordered and shuffled frames share every matmul, and each weight is read once for both.

    The cache travels in the scan's carry: as scanned input and output it would be copied whole each token.
    """
    batch, rows = tokens.shape
    bounds = list(itertools.accumulate(groups))[:-1]
    starts = [jnp.broadcast_to(p.next_position[:, None], (batch, g)) for p, g in zip(prompts, groups, strict=True)]
    positions = jnp.broadcast_to((jnp.concatenate(starts, 1) + step)[:, None], (batch, 3, rows))
    angles = rope.text_angles(positions, model.config.text)

    def body(carry, inputs):
        x, cache = carry
        layer, memories, index = inputs

        def attend(q, k, v):
            q, k, v = q[:, :, None], k[..., None], v[..., None, :]
            keys = _write(cache.keys, k, (index, 0, 0, 0, 0, step))
            new = KVCache(keys, _write(cache.values, v, (index, 0, 0, 0, step, 0)))
            by_group = [jnp.split(x, bounds, axis=1) for x in (q, new.keys[index], new.values[index])]
            outs = [
                attention.decode(*qkv, *memory, prompt.mask, step)
                for *qkv, memory, prompt in zip(*by_group, memories, prompts, strict=True)
            ]
            return jnp.concatenate(outs, axis=1)[:, :, 0], new

        return text.block(layer, x, angles, attend, model.config.text.norm_eps), None

    per_layer = (model.text.layers, [(p.keys, p.values) for p in prompts], jnp.arange(model.config.text.layers))
    (x, cache), _ = jax.lax.scan(body, (text.embed_tokens(model.text, tokens), cache), per_layer)
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


def _take_apart(x, prompt_length: int, groups: int):
    """[B, T + G*C, ...] -> [B, T, ...] and [B, G, C, ...]."""
    rest = x[:, prompt_length:]
    return x[:, :prompt_length], rest.reshape(x.shape[0], groups, -1, *x.shape[2:])


def _write(cache, new, place):
    return jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), place)
