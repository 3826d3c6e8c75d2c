"""Every parameter of ours, its published Hugging Face name, and how the axes correspond. Read both ways.

A rule's axes are letters: ours on the left, the published tensor's on the right, where letters written
together are one flattened axis. `DNH -> NH D` says that a published matrix [heads * head width, width] is our
[width, heads, head width]. Names with `{}` exist once a layer; ours are stacked along a leading axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vr1_jax.models.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    path: str  # of our parameter, dotted
    key: str  # published name
    axes: str

    @property
    def stacked(self) -> bool:
        return "{}" in self.key

    @property
    def ours(self) -> str:
        return self.axes.split(" -> ")[0]

    @property
    def theirs(self) -> list[str]:
        return self.axes.split(" -> ")[1].split()

    def published_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the published tensor, from the shape of ours without its layer axis."""
        sizes = dict(zip(self.ours, shape, strict=True))
        return tuple(math.prod(sizes[letter] for letter in word) for word in self.theirs)

    def from_published(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Ours, a view where possible; `shape` is ours without the layer axis."""
        sizes, order = dict(zip(self.ours, shape, strict=True)), "".join(self.theirs)
        split = tensor.reshape([sizes[letter] for letter in order])
        return split.transpose([order.index(letter) for letter in self.ours])

    def published_runs(self, shape: tuple[int, ...], index: tuple[slice, ...]) -> list[list[slice]]:
        """For every published axis, the contiguous runs that together hold our block `index`.

        A block of heads is one run of a q_proj, but three of the vision tower's fused qkv.
        """
        axes = dict(zip(self.ours, zip(shape, index, strict=True), strict=True))
        return [_runs([axes[letter] for letter in word]) for word in self.theirs]

    def to_published(self, array: np.ndarray) -> np.ndarray:
        order = "".join(self.theirs)
        turned = array.transpose([self.ours.index(letter) for letter in order])
        return np.ascontiguousarray(turned).reshape(self.published_shape(array.shape))

    def keys(self, shape: tuple[int, ...]) -> list[str]:
        """Published names of all layers, from the shape of ours with its layer axis."""
        return [self.key.format(layer) for layer in range(shape[0])] if self.stacked else [self.key]

    def layer_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[1:] if self.stacked else shape


def _runs(axes: Sequence[tuple[int, slice]]) -> list[slice]:
    """The runs of a flattened axis, from the (size, part) of the axes in it, outermost first."""
    runs = [slice(0, 1)]
    for size, part in axes:
        start, stop, _ = part.indices(size)
        if (start, stop) == (0, size):
            runs = [slice(run.start * size, run.stop * size) for run in runs]
        else:
            rows = [row for run in runs for row in range(run.start, run.stop)]
            runs = [slice(row * size + start, row * size + stop) for row in rows]
    return runs


_LAYER = "model.layers.{}."
_BLOCK = "visual.blocks.{}."

_RULES = (
    Rule("text.embed", "model.embed_tokens.weight", "VD -> V D"),
    Rule("text.norm", "model.norm.weight", "D -> D"),
    Rule("text.head", "lm_head.weight", "VD -> V D"),
    Rule("text.layers.attention_norm", _LAYER + "input_layernorm.weight", "D -> D"),
    Rule("text.layers.query", _LAYER + "self_attn.q_proj.weight", "DNH -> NH D"),
    Rule("text.layers.query_bias", _LAYER + "self_attn.q_proj.bias", "NH -> NH"),
    Rule("text.layers.key", _LAYER + "self_attn.k_proj.weight", "DKH -> KH D"),
    Rule("text.layers.key_bias", _LAYER + "self_attn.k_proj.bias", "KH -> KH"),
    Rule("text.layers.value", _LAYER + "self_attn.v_proj.weight", "DKH -> KH D"),
    Rule("text.layers.value_bias", _LAYER + "self_attn.v_proj.bias", "KH -> KH"),
    Rule("text.layers.out", _LAYER + "self_attn.o_proj.weight", "NHD -> D NH"),
    Rule("text.layers.mlp_norm", _LAYER + "post_attention_layernorm.weight", "D -> D"),
    Rule("text.layers.gate", _LAYER + "mlp.gate_proj.weight", "DF -> F D"),
    Rule("text.layers.up", _LAYER + "mlp.up_proj.weight", "DF -> F D"),
    Rule("text.layers.down", _LAYER + "mlp.down_proj.weight", "FD -> D F"),
    Rule("vision.patch_embed", "visual.patch_embed.proj.weight", "CTXYD -> D C T X Y"),
    Rule("vision.merger_norm", "visual.merger.ln_q.weight", "D -> D"),
    Rule("vision.merger_in", "visual.merger.mlp.0.weight", "IF -> F I"),
    Rule("vision.merger_in_bias", "visual.merger.mlp.0.bias", "F -> F"),
    Rule("vision.merger_out", "visual.merger.mlp.2.weight", "FD -> D F"),
    Rule("vision.merger_out_bias", "visual.merger.mlp.2.bias", "D -> D"),
    Rule("vision.layers.attention_norm", _BLOCK + "norm1.weight", "D -> D"),
    Rule("vision.layers.qkv", _BLOCK + "attn.qkv.weight", "DcNH -> cNH D"),
    Rule("vision.layers.qkv_bias", _BLOCK + "attn.qkv.bias", "cNH -> cNH"),
    Rule("vision.layers.out", _BLOCK + "attn.proj.weight", "NHD -> D NH"),
    Rule("vision.layers.out_bias", _BLOCK + "attn.proj.bias", "D -> D"),
    Rule("vision.layers.mlp_norm", _BLOCK + "norm2.weight", "D -> D"),
    Rule("vision.layers.gate", _BLOCK + "mlp.gate_proj.weight", "DF -> F D"),
    Rule("vision.layers.gate_bias", _BLOCK + "mlp.gate_proj.bias", "F -> F"),
    Rule("vision.layers.up", _BLOCK + "mlp.up_proj.weight", "DF -> F D"),
    Rule("vision.layers.up_bias", _BLOCK + "mlp.up_proj.bias", "F -> F"),
    Rule("vision.layers.down", _BLOCK + "mlp.down_proj.weight", "FD -> D F"),
    Rule("vision.layers.down_bias", _BLOCK + "mlp.down_proj.bias", "D -> D"),
)


def rules(config: ModelConfig) -> tuple[Rule, ...]:
    """The rules that apply: a tied model has no head of its own."""
    return tuple(rule for rule in _RULES if rule.path != "text.head" or not config.text.tied)


def published_name(key: str) -> str:
    """The published spelling of a key that transformers 5 may have saved in its own."""
    for theirs, published in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if key.startswith(theirs):
            return published + key.removeprefix(theirs)
    return key
