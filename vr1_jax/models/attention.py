"""Attention in the four shapes the program needs, all grouped-query, all with an fp32 softmax.

    windowed   vision: every patch of a slice against the same slice, under a mask
    causal     a sequence against itself
    grouped    G completions against one shared prompt and, causally, against themselves
    decode     the newest token of G completions against the shared prompt and their caches

A row with nothing to attend to (padding) gets an even mixture of whatever is there: finite, and never read.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30

# Queries handled at once in `causal`: bounds the logits of a long prompt, [N, block, S] for each row.
_QUERY_BLOCK = 1024


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
    keys = jnp.arange(length)

    def attend(q_block, first):
        queries = first + jnp.arange(q_block.shape[1])
        visible = mask[:, None, :] & (keys <= queries[:, None])
        logits = _dot("BSKnH,BTKH->BKnST", _scaled(_by_kv_head(q_block, k)), k)
        weights = jax.nn.softmax(jnp.where(visible[:, None, None], logits, _MASKED), axis=-1)
        return jnp.einsum("BKnST,BTKH->BSKnH", weights.astype(v.dtype), v).reshape(q_block.shape)

    if length <= _QUERY_BLOCK:
        return attend(q, 0)
    padded = jnp.pad(q, ((0, 0), (0, -length % _QUERY_BLOCK), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(q.shape[0], -1, _QUERY_BLOCK, *q.shape[2:]), 1, 0)
    firsts = jnp.arange(len(blocks)) * _QUERY_BLOCK
    out = jax.lax.map(lambda block: jax.checkpoint(attend)(*block), (blocks, firsts))
    return jnp.moveaxis(out, 0, 1).reshape(padded.shape)[:, :length]


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
    return _attend_to_both(q, k, v, prompt_k, prompt_v, prompt_mask, past)


def decode(
    q: Float[Array, "B G 1 N H"],
    k: Float[Array, "B G S K H"],
    v: Float[Array, "B G S K H"],
    prompt_k: Float[Array, "B T K H"],
    prompt_v: Float[Array, "B T K H"],
    prompt_mask: Bool[Array, "B T"],
    step: Int[Array, ""],
) -> Float[Array, "B G 1 N H"]:
    """`step` is the slot of the newest token; later slots of the cache are not written yet."""
    past = (jnp.arange(k.shape[2]) <= step)[None, :]
    return _attend_to_both(q, k, v, prompt_k, prompt_v, prompt_mask, past)


def _attend_to_both(q, k, v, prompt_k, prompt_v, prompt_mask, past):
    """One softmax over [prompt, own past] without concatenating either: the prompt is read once for G rows."""
    q_by_kv = _scaled(_by_kv_head(q, k))
    to_prompt = _dot("BGCKnH,BTKH->BKnGCT", q_by_kv, prompt_k)
    to_own = _dot("BGCKnH,BGSKH->BKnGCS", q_by_kv, k)
    to_prompt = jnp.where(prompt_mask[:, None, None, None, None, :], to_prompt, _MASKED)
    to_own = jnp.where(past, to_own, _MASKED)
    peak = jax.lax.stop_gradient(jnp.maximum(to_prompt.max(-1), to_own.max(-1)))[..., None]
    to_prompt, to_own = jnp.exp(to_prompt - peak), jnp.exp(to_own - peak)
    total = to_prompt.sum(-1) + to_own.sum(-1)
    out = jnp.einsum(
        "BKnGCT,BTKH->BGCKnH", to_prompt.astype(v.dtype), prompt_v, preferred_element_type=jnp.float32
    )
    out += jnp.einsum("BKnGCS,BGSKH->BGCKnH", to_own.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out /= jnp.einsum("BKnGC->BGCKn", total)[..., None]
    return out.astype(v.dtype).reshape(q.shape)


def _by_kv_head(q, k):
    """[... N H] -> [... K n H]: the n query heads that share a kv head."""
    return q.reshape(*q.shape[:-2], k.shape[-2], -1, q.shape[-1])


def _scaled(q):
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _dot(spec, q, k):
    return jnp.einsum(spec, q, k, preferred_element_type=jnp.float32)
