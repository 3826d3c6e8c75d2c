"""The protocol of a model family, and the entry points that every family shares.

    forward               prompt tokens -> hidden states            parity tests
    forward_completions   one prompt, G completions -> hidden       losses: the prompt is computed once
    prefill               prompt tokens -> last hidden state, keys and values
    decode                one token of every completion -> hidden   sampling

Hidden states come back normalised; `logits` turns the ones that matter into vocabulary scores.

A family is a subclass of `Model`: how its config.json is read, what its parameters are called in published
files, its vision tower and its decoder block. `families` lists them.
"""

import contextlib
import copy
import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vr1_jax.models import attention, layers, text
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.mapping import Rule
from vr1_jax.types import KVCache, Prompt, PromptCache


class Model(nnx.Module):
    """Parameters of both towers, and the config they were built from (static: part of the tree's structure)."""

    MODEL_TYPE: ClassVar[str]  # in config.json
    NAME: ClassVar[str]  # for messages
    ARCHITECTURE: ClassVar[str]  # of transformers, for exports without one

    config: ModelConfig
    text: text.Text
    vision: nnx.Module

    @classmethod
    @abstractmethod
    def parse_config(cls, hf: dict[str, Any]) -> ModelConfig:
        """From the content of config.json; UsageError names a field that cannot be."""

    @classmethod
    @abstractmethod
    def rules(cls, config: ModelConfig) -> tuple[Rule, ...]:
        """Every parameter with its published name."""

    @classmethod
    @abstractmethod
    def published_name(cls, key: str) -> str:
        """The published spelling of a name in a file that may spell it otherwise."""

    @classmethod
    @abstractmethod
    def module_name(cls, key: str) -> str:
        """What transformers' model calls the tensor of this published name."""

    @abstractmethod
    def visual_units(self, prompt: Prompt) -> Float[Array, "B U D"]:
        """What the vision tower makes of the prompt's patches: one embedding for each visual token."""

    @abstractmethod
    def angles(self, positions: Int[Array, "B 3 S"]) -> Float[Array, "B S Hhalf"]:
        """Rotary angles of the decoder."""

    @abstractmethod
    def block(self, layer: nnx.Module, x, angles, attend: text.Attend) -> tuple[Float[Array, "B S D"], Any]:
        """One layer of the decoder; `attend` is what the entry points differ in."""


def computing_in(dtype: DTypeLike) -> contextlib.AbstractContextManager:
    """Around everything that is traced for arithmetic in this dtype: float32 that is float32 on accelerators too,
    which multiply its factors in 10 or 7 bits unless told not to."""
    if jnp.dtype(dtype) == jnp.float32:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def embed_prompt(model: Model, prompt: Prompt) -> Float[Array, "B T D"]:
    """Token embeddings, with visual units in the slots that ask for one."""
    units = model.visual_units(prompt)
    words = text.embed_tokens(model.text, prompt.tokens)
    filled = jnp.take_along_axis(units, jnp.maximum(prompt.visual_slots, 0)[..., None], axis=1)
    return jnp.where((prompt.visual_slots >= 0)[..., None], filled, words)


def forward(model: Model, prompt: Prompt) -> Float[Array, "B T D"]:
    def attend(q, k, v):
        return attention.causal(q, k, v, prompt.mask), None

    hidden, _ = _decoder(model, embed_prompt(model, prompt), prompt.positions, attend)
    return hidden


def forward_completions(
    model: Model, prompt: Prompt, tokens: Int[Array, "B G C"]
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


def prefill(model: Model, prompt: Prompt) -> tuple[Float[Array, "B D"], PromptCache]:
    """The last hidden state, from which the first token is sampled, and what completions attend to."""

    def attend(q, k, v):
        return attention.causal(q, k, v, prompt.mask), attention.as_cached(k, v)

    hidden, cached = _decoder(model, embed_prompt(model, prompt), prompt.positions, attend)
    if not is_unstacked(model):
        cached = [
            jax.tree.map(lambda x, index=index: x[index], cached) for index in range(model.config.text.layers)
        ]
    keys, values = zip(*cached, strict=True)
    return hidden[:, -1], PromptCache(keys, values, prompt.mask, prompt.next_position)


def decode(
    model: Model,
    prompts: Sequence[PromptCache],
    groups: tuple[int, ...],
    caches: Sequence[KVCache],
    tokens: Int[Array, "B rows"],
    step: Int[Array, ""],
) -> tuple[Float[Array, "B rows D"], list[KVCache]]:
    """Feed token number `step` of every completion; the hidden state predicts the next one.

    The first groups[0] rows of each batch element continue prompts[0], the next groups[1] continue prompts[1]:
    ordered and shuffled frames share every matmul, and each weight is read once for both. Each group has a cache.

    Layers are unrolled, over weights and caches that are arrays of their own for each layer: in a scan over
    stacked ones a GPU's compiler copies every layer's weights for every token, more than half of all bytes moved.
    """
    batch, rows = tokens.shape
    bounds = list(itertools.accumulate(groups))[:-1]
    starts = [jnp.broadcast_to(p.next_position[:, None], (batch, g)) for p, g in zip(prompts, groups, strict=True)]
    positions = jnp.broadcast_to((jnp.concatenate(starts, 1) + step)[:, None], (batch, 3, rows))
    angles = model.angles(positions)
    x, written = text.embed_tokens(model.text, tokens), []
    every = model.text.layers if is_unstacked(model) else _each_layer(model.text.layers)
    for index, layer in enumerate(every):

        def attend(q, k, v, index=index):
            by_group = zip(*(jnp.split(part, bounds, axis=1) for part in (q[:, :, None], k, v)), strict=True)
            outs, new = [], []
            for (q, k, v), prompt, cache in zip(by_group, prompts, caches, strict=True):
                keys, values = attention.write(cache.keys[index], cache.values[index], k, v, step)
                memory = prompt.keys[index], prompt.values[index]
                outs.append(attention.decode(q, keys, values, *memory, prompt.mask, step))
                new.append((keys, values))
            return jnp.concatenate(outs, axis=1)[:, :, 0], new

        x, new = model.block(layer, x, angles, attend)
        written.append(new)
    by_group = [zip(*layers_of_group, strict=True) for layers_of_group in zip(*written, strict=True)]
    hidden = layers.rms_norm(x, model.text.norm[...], model.config.text.norm_eps)
    return hidden, [KVCache(*keys_and_values) for keys_and_values in by_group]


def unstack(model: Model, *, free: bool = False) -> Model:
    """The same model with a module for each layer of the decoder, as `decode` wants it.

    `free` gives back the memory of each stacked array once it is taken apart: there are never two models.
    """
    if is_unstacked(model):
        return model
    new, new.text = copy.copy(model), copy.copy(model.text)
    new.text.layers = nnx.List(_each_layer(model.text.layers, free))
    return new


def is_unstacked(model: Model) -> bool:
    return isinstance(model.text.layers, nnx.List)


def _each_layer(stacked: nnx.Module, free: bool = False) -> list[nnx.Module]:
    params, structure = jax.tree.flatten(stacked, is_leaf=lambda node: isinstance(node, nnx.Param))
    apart = []
    for param in params:
        axes = param.get_metadata("axes")[1:]
        apart.append([nnx.Param(array, axes=axes) for array in _rows(param[...])])
        if free:
            param[...].delete()
    return [structure.unflatten(layer) for layer in zip(*apart, strict=True)]


@jax.jit
def _rows(x: jax.Array) -> list[jax.Array]:
    return list(x)


def logits(model: Model, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    return text.logits(model.text, hidden)


def _decoder(model: Model, x, positions, attend: text.Attend):
    """All layers; what `attend` gives back comes stacked, or as a list where the layers are a list."""
    angles = model.angles(positions)

    @jax.checkpoint
    def body(x, layer):
        return model.block(layer, x, angles, attend)

    if is_unstacked(model):
        extras = []
        for layer in model.text.layers:
            x, extra = body(x, layer)
            extras.append(extra)
    else:
        x, extras = jax.lax.scan(body, x, model.text.layers)
    return layers.rms_norm(x, model.text.norm[...], model.config.text.norm_eps), extras


def _take_apart(x, prompt_length: int, groups: int):
    """[B, T + G*C, ...] -> [B, T, ...] and [B, G, C, ...]."""
    rest = x[:, prompt_length:]
    return x[:, :prompt_length], rest.reshape(x.shape[0], groups, -1, *x.shape[2:])
