"""The decoder. One block serves every entry point; they differ in the attention they pass in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vr1_jax.models import layers
from vr1_jax.models.config import TextConfig
from vr1_jax.sharding import shard

# (q, k, v) of one layer -> (attention output, whatever the entry point wants back from the layer)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class TextLayers(nnx.Module):
    def __init__(self, config: TextConfig, key: jax.Array, dtype: DTypeLike):
        declare = layers.Declare(key, dtype, config.layers)
        embed, mlp, head_dim = ("embed", config.width), ("mlp", config.mlp), (None, config.head_dim)
        heads, kv_heads = ("heads", config.heads), ("kv_heads", config.kv_heads)
        self.attention_norm = declare(embed, init=layers.ones)
        self.query = declare(embed, heads, head_dim)
        self.query_bias = declare(heads, head_dim, init=layers.zeros)
        self.key = declare(embed, kv_heads, head_dim)
        self.key_bias = declare(kv_heads, head_dim, init=layers.zeros)
        self.value = declare(embed, kv_heads, head_dim)
        self.value_bias = declare(kv_heads, head_dim, init=layers.zeros)
        self.out = declare(heads, head_dim, embed)
        self.mlp_norm = declare(embed, init=layers.ones)
        self.gate = declare(embed, mlp)
        self.up = declare(embed, mlp)
        self.down = declare(mlp, embed)


class Text(nnx.Module):
    def __init__(self, config: TextConfig, key: jax.Array, dtype: DTypeLike):
        own, stack = jax.random.split(key)
        declare = layers.Declare(own, dtype)
        vocab, embed = ("vocab", config.vocab), ("embed", config.width)
        self.embed = declare(vocab, embed)
        self.layers = TextLayers(config, stack, dtype)
        self.norm = declare(embed, init=layers.ones)
        # Tied models compute with the embedding itself: an aliased parameter would become two leaves.
        self.head = None if config.tied else declare(vocab, embed)


def block(
    layer: TextLayers, x: Float[Array, "B S D"], angles: Float[Array, "B S Hhalf"], attend: Attend, eps: float
) -> tuple[Float[Array, "B S D"], Any]:
    h = layers.rms_norm(x, layer.attention_norm[...], eps)
    q = layers.linear("BSD,DNH->BSNH", h, layer.query) + layer.query_bias[...]
    k = layers.linear("BSD,DKH->BSKH", h, layer.key) + layer.key_bias[...]
    v = layers.linear("BSD,DKH->BSKH", h, layer.value) + layer.value_bias[...]
    q = shard(layers.rotate(q, angles), "batch", None, "heads", None)
    k = shard(layers.rotate(k, angles), "batch", None, "kv_heads", None)
    h, extra = attend(q, k, shard(v, "batch", None, "kv_heads", None))
    x = x + shard(layers.linear("BSNH,NHD->BSD", h, layer.out), "batch", None, None)
    h = layers.rms_norm(x, layer.mlp_norm[...], eps)
    gate, up = (layers.linear("BSD,DF->BSF", h, matrix) for matrix in (layer.gate, layer.up))
    h = shard(jax.nn.silu(gate) * up, "batch", None, "mlp")
    return x + shard(layers.linear("BSF,FD->BSD", h, layer.down), "batch", None, None), extra


def embed_tokens(text: Text, tokens: jax.Array) -> Float[Array, "B S D"]:
    table = shard(text.embed[...], "vocab", None)  # gathered like any weight, before rows are picked from it
    return shard(_look_up(table, tokens), "batch", None, None)


@jax.custom_vjp
def _look_up(table: Float[Array, "V D"], tokens: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
    """Rows of the table. Its gradient adds up what repeated tokens get, and does so in fp32."""
    return table[tokens]


def _look_up_forward(table, tokens):
    return table[tokens], (tokens, jnp.zeros((0, *table.shape), table.dtype))


def _look_up_backward(saved, gradient):
    tokens, like = saved
    total = jnp.zeros(like.shape[1:], jnp.float32).at[tokens].add(gradient.astype(jnp.float32))
    return total.astype(like.dtype), np.zeros(tokens.shape, jax.dtypes.float0)


_look_up.defvjp(_look_up_forward, _look_up_backward)


def head_weights(text: Text) -> Float[Array, "V D"]:
    return (text.embed if text.head is None else text.head)[...]


def logits(text: Text, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """fp32 logits of hidden states that `base` already normalised."""
    return jnp.einsum("...D,VD->...V", hidden, head_weights(text), preferred_element_type=jnp.float32)
