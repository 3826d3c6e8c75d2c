"""Attention in the four shapes the program needs, all grouped-query, all with an fp32 softmax.

    windowed   vision: every patch of a slice against the same slice, under a mask
    causal     a sequence against itself
    grouped    G completions against one shared prompt and, causally, against themselves
    decode     the newest token of G completions against the shared prompt and their caches

A row with nothing to attend to (padding) gets an even mixture of whatever is there: finite, and never read.
"""

import itertools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vr1_jax.models.config import TextConfig
from vr1_jax.sharding import shard
from vr1_jax.types import KVCache

_MASKED = -1e30

# A sequence that attends to itself is cut into blocks of queries; none meets a key after its last query. Small
# blocks skip more of the keys that come later, and are more operations.
_SMALL_BLOCK, _MOST_SMALL_BLOCKS = 256, 6
# The scores of one block, [N, block, S] in fp32, must fit beside everything else.
LARGEST_BLOCK = 1024


def windowed(
    q: Float[Array, "*rows P N H"],
    k: Float[Array, "*rows P N H"],
    v: Float[Array, "*rows P N H"],
    mask: Bool[Array, "*rows P P"],
) -> Float[Array, "*rows P N H"]:
    logits = _dot("...PNH,...QNH->...NPQ", _scaled(q), k)
    weights = jax.nn.softmax(jnp.where(mask[..., None, :, :], logits, _MASKED), axis=-1)
    return jnp.einsum("...NPQ,...QNH->...PNH", weights.astype(v.dtype), v)


def causal(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B S"],
) -> Float[Array, "B S N H"]:
    """`mask` marks the keys that are real tokens."""
    length = q.shape[1]

    def attend(q_block, k, v, mask):
        queries = k.shape[1] - q_block.shape[1] + jnp.arange(q_block.shape[1])
        visible = mask[:, None, :] & (jnp.arange(k.shape[1]) <= queries[:, None])
        logits = _dot("BSKnH,BTKH->BKnST", _scaled(_by_kv_head(q_block, k)), k)
        weights = jax.nn.softmax(jnp.where(visible[:, None, None], logits, _MASKED), axis=-1)
        return jnp.einsum("BKnST,BTKH->BSKnH", weights.astype(v.dtype), v).reshape(q_block.shape)

    if length > LARGEST_BLOCK:  # weights of all blocks together are too many to keep for the backward pass
        attend = jax.checkpoint(attend)
    blocks = itertools.pairwise(block_bounds(length))
    outs = [attend(q[:, first:end], k[:, :end], v[:, :end], mask[:, :end]) for first, end in blocks]
    return jnp.concatenate(outs, axis=1)


def block_bounds(length: int) -> list[int]:
    """0, ..., length, evenly spaced."""
    count = max(min(-(-length // _SMALL_BLOCK), _MOST_SMALL_BLOCKS), -(-length // LARGEST_BLOCK))
    return [length * block // count for block in range(count + 1)]


def causal_scores(length: int) -> int:
    """(query, key) pairs that `causal` computes: between half of them, for many blocks, and all."""
    return sum((end - first) * end for first, end in itertools.pairwise(block_bounds(length)))


def grouped(
    q: Float[Array, "B G C N H"],
    k: Float[Array, "B G C K H"],
    v: Float[Array, "B G C K H"],
    prompt_k: Float[Array, "B T K H"],
    prompt_v: Float[Array, "B T K H"],
    prompt_mask: Bool[Array, "B T"],
) -> Float[Array, "B G C N H"]:
    """Completions are right-padded, so causality alone hides their padding."""
    length = q.shape[2]
    past = jnp.arange(length) <= jnp.arange(length)[:, None]
    k, prompt_k = (jnp.moveaxis(x, -3, -1) for x in (k, prompt_k))
    v, prompt_v = (jnp.swapaxes(x, -3, -2) for x in (v, prompt_v))
    return _attend_to_both(q, k, v, prompt_k, prompt_v, prompt_mask, past)


def decode(
    q: Float[Array, "B G 1 N H"],
    k: Float[Array, "B G K H S"],
    v: Float[Array, "B G K S H"],
    prompt_k: Float[Array, "B K H T"],
    prompt_v: Float[Array, "B K T H"],
    prompt_mask: Bool[Array, "B T"],
    step: Int[Array, ""],
) -> Float[Array, "B G 1 N H"]:
    """`step` is the slot of the newest token; later slots of the cache are not written yet."""
    past = (jnp.arange(k.shape[-1]) <= step)[None, :]
    return _attend_to_both(q, k, v, prompt_k, prompt_v, prompt_mask, past)


def as_cached(k: Float[Array, "B S K H"], v: Float[Array, "B S K H"]):
    """Keys and values as decoding multiplies them: any other order would be copied for every token."""
    return jnp.moveaxis(k, 1, 3), jnp.swapaxes(v, 1, 2)


def empty_cache(config: TextConfig, batch: int, rows: int, slots: int, dtype: DTypeLike) -> KVCache:
    keys, values = (config.head_dim, slots), (slots, config.head_dim)

    def empty(shape):
        zeros = jnp.zeros((batch, rows, config.kv_heads, *shape), dtype)
        return shard(zeros, "batch", None, "kv_heads")

    return KVCache(*(tuple(empty(shape) for _ in range(config.layers)) for shape in (keys, values)))


def write(keys, values, k: Float[Array, "B G K H"], v: Float[Array, "B G K H"], slot: Int[Array, ""]):
    """A layer's cache with one more token of every completion."""
    put = jax.lax.dynamic_update_slice_in_dim
    keys = put(keys, k[..., None].astype(keys.dtype), slot, axis=4)
    return keys, put(values, v[..., None, :].astype(values.dtype), slot, axis=3)


def first_slots(cache: KVCache, slots: int) -> KVCache:
    return KVCache(tuple(k[..., :slots] for k in cache.keys), tuple(v[..., :slots, :] for v in cache.values))


def with_first_slots(cache: KVCache, first: KVCache) -> KVCache:
    """The whole cache, its first slots replaced."""
    slots = first.keys[0].shape[-1]
    keys = [whole.at[..., :slots].set(new) for whole, new in zip(cache.keys, first.keys, strict=True)]
    values = [whole.at[..., :slots, :].set(new) for whole, new in zip(cache.values, first.values, strict=True)]
    return KVCache(tuple(keys), tuple(values))


def _attend_to_both(q, k, v, prompt_k, prompt_v, prompt_mask, past):
    """One softmax over [prompt, own past] without concatenating either: the prompt is read once for G rows.

    Every product has its operands as they lie in memory, batch axes first: a transposed cache would be a copy.
    """
    by_kv_head = q.reshape(*q.shape[:-2], k.shape[-3], -1, q.shape[-1])
    q_own = jnp.einsum("BGCKnH->BGKnCH", _scaled(by_kv_head))
    to_prompt = _dot("BKnGCH,BKHT->BKnGCT", _of_prompt(q_own), prompt_k)
    to_own = _dot("BGKnCH,BGKHS->BGKnCS", q_own, k)
    to_prompt = jnp.where(prompt_mask[:, None, None, None, None, :], to_prompt, _MASKED)
    to_own = jnp.where(past, to_own, _MASKED)
    peak = jax.lax.stop_gradient(jnp.maximum(_of_own(to_prompt.max(-1)), to_own.max(-1)))
    to_prompt, to_own = jnp.exp(to_prompt - _of_prompt(peak)[..., None]), jnp.exp(to_own - peak[..., None])
    total = _of_own(to_prompt.sum(-1)) + to_own.sum(-1)
    out = jnp.einsum("BGKnCS,BGKSH->BGKnCH", to_own.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out += _of_own(
        jnp.einsum("BKnGCT,BKTH->BKnGCH", to_prompt.astype(v.dtype), prompt_v, preferred_element_type=jnp.float32)
    )
    out = jnp.einsum("BGKnCH->BGCKnH", out / total[..., None])
    return out.astype(v.dtype).reshape(q.shape)


def _of_prompt(x):
    """[B G K n C ...] -> [B K n G C ...]: the rows that share a prompt's keys, together."""
    return jnp.moveaxis(x, 1, 3)


def _of_own(x):
    return jnp.moveaxis(x, 3, 1)


def _by_kv_head(q, k):
    """[... N H] -> [... K n H]: the n query heads that share a kv head."""
    return q.reshape(*q.shape[:-2], k.shape[-2], -1, q.shape[-1])


def _scaled(q):
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _dot(spec, q, k):
    return jnp.einsum(spec, q, k, preferred_element_type=jnp.float32)
