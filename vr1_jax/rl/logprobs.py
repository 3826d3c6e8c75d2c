"""Log-probs and entropy of completion tokens, without ever holding [B, G, C, V].

The vocabulary projection runs over chunks of positions and is computed again in the backward pass: at most
[B, chunk, V] is alive, whatever the length of the answers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vr1_jax.models import base, text
from vr1_jax.models.base import Model
from vr1_jax.sharding import shard
from vr1_jax.types import Prompt

# Positions of each prompt's completions projected at once. At V = 152k and 512 positions: 0.3 GB in fp32.
_CHUNK = 512


class TokenScores(NamedTuple):
    logps: Float[Array, "B G C"]
    entropy: Float[Array, "B G C"]  # of the distribution that predicted the token; no gradient


def score_completions(model: Model, prompt: Prompt, tokens: Int[Array, "B G C"]) -> TokenScores:
    """One pass over the prompt and all its completions."""
    _, hidden = base.forward_completions(model, prompt, tokens)
    return score_tokens(model, hidden, tokens)


def score_tokens(model: Model, hidden: Float[Array, "B G C D"], tokens: Int[Array, "B G C"]) -> TokenScores:
    """`hidden` are the states from which `tokens` are predicted."""
    batch, groups, length, _ = hidden.shape
    total = groups * length
    size = min(_CHUNK, total)
    pad = -total % size
    # The head's gradient is a sum over chunks: carried in fp32, whatever the head is computed in.
    head = text.head_weights(model.text)
    compute, head32 = head.dtype, shard(head, "vocab", None).astype(jnp.float32)

    @jax.checkpoint
    def score(chunk):
        hidden, tokens = chunk
        logits = jnp.einsum("BSD,VD->BSV", hidden, head32.astype(compute), preferred_element_type=jnp.float32)
        logits = shard(logits, "batch", None, "vocab")
        log_total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        fixed = jax.lax.stop_gradient(logits)
        entropy = log_total - (jax.nn.softmax(fixed, axis=-1) * fixed).sum(-1)
        return chosen - log_total, jax.lax.stop_gradient(entropy)

    def chunked(x):
        x = jnp.pad(x.reshape(batch, total, *x.shape[3:]), [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)

    def whole(x):
        return jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :total].reshape(batch, groups, length)

    return TokenScores(*(whole(x) for x in jax.lax.map(score, (chunked(hidden), chunked(tokens)))))
