"""Qwen2.5-VL: how its config.json is read, what its parameters are called, and which blocks it is made of."""

import re
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vr1_jax.errors import UsageError
from vr1_jax.models import base, layers, text, vision
from vr1_jax.models.config import (
    ModelConfig,
    TextConfig,
    VisionConfig,
    checked,
    flatten_hf_config,
    read_fields,
    refuse_unless,
    section,
)
from vr1_jax.models.mapping import Rule
from vr1_jax.types import Prompt

# Our fields by their names in config.json.
_TEXT = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
    "mrope_section": "mrope_section",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
_VISION = {
    "layers": "depth",
    "width": "hidden_size",
    "heads": "num_heads",
    "mlp": "intermediate_size",
    "out_width": "out_hidden_size",
    "full_attention_layers": "fullatt_block_indexes",
    "channels": "in_chans",
    "patch": "patch_size",
    "merge": "spatial_merge_size",
    "temporal": "temporal_patch_size",
    "window": "window_size",
    "tokens_per_second": "tokens_per_second",
    "rope_theta": "rope_theta",
}
_TOKENS = {
    "image_token": ("image_token_id", 151655),
    "video_token": ("video_token_id", 151656),
    "vision_start_token": ("vision_start_token_id", 151652),
    "vision_end_token": ("vision_end_token_id", 151653),
}

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


# How transformers 5 calls what files call otherwise.
_SPELLINGS = (("model.language_model.", "model."), ("model.visual.", "visual."))


class Qwen25VL(base.Model):
    MODEL_TYPE = "qwen2_5_vl"
    NAME = "Qwen2.5-VL"
    ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: DTypeLike = jnp.float32):
        vision_key, text_key = jax.random.split(key)
        self.config = config
        self.vision = vision.Vision(config.vision, vision_key, dtype)
        self.text = text.Text(config.text, text_key, dtype)

    def visual_units(self, prompt: Prompt):
        return vision.visual_units(self.vision, prompt, self.config.vision)

    def angles(self, positions):
        return layers.text_angles(positions, self.config.text)

    def block(self, layer, x, angles, attend):
        return text.block(layer, x, angles, attend, self.config.text.norm_eps)

    @classmethod
    def parse_config(cls, hf: dict[str, Any]) -> ModelConfig:
        flat = flatten_hf_config(hf)
        text, vision = _text_config(flat), _vision_config(section(flat, "vision_config"))
        tokens = {
            ours: checked(theirs, flat.get(theirs, default), int, least=0, most=text.vocab - 1)
            for ours, (theirs, default) in _TOKENS.items()
        }
        config = ModelConfig(text, vision, **tokens, model_type=cls.MODEL_TYPE)
        _check(config)
        return config

    @classmethod
    def rules(cls, config: ModelConfig) -> tuple[Rule, ...]:
        """A tied model has no head of its own."""
        return tuple(rule for rule in _RULES if rule.path != "text.head" or not config.text.tied)

    @classmethod
    def published_name(cls, key: str) -> str:
        """transformers 5 may have saved its own spelling."""
        for theirs, published in _SPELLINGS:
            if key.startswith(theirs):
                return published + key.removeprefix(theirs)
        return key

    @classmethod
    def module_name(cls, key: str) -> str:
        for theirs, published in _SPELLINGS:
            if key.startswith(published):
                return theirs + key.removeprefix(published)
        return key


def _text_config(flat: dict[str, Any]) -> TextConfig:
    refuse_unless(flat, hidden_act="silu", use_sliding_window=False, attention_dropout=0.0)
    layer_types = flat.get("layer_types")
    if isinstance(layer_types, list) and "sliding_attention" in layer_types:
        raise UsageError("layer_types has 'sliding_attention'; only full attention is supported")
    rope = section(flat, "rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "mrope"))
    if kind not in ("mrope", "default"):
        raise UsageError(
            f"rope_scaling type {reprlib.repr(kind)} is not supported; published checkpoints use 'mrope'"
        )
    defaults = {
        "num_key_value_heads": flat.get("num_attention_heads"),
        "mrope_section": rope.get("mrope_section", [16, 24, 24]),
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    text = read_fields(TextConfig, _TEXT, defaults | flat)
    if flat.get("head_dim") not in (None, text.head_dim):
        raise UsageError(
            f"head_dim {reprlib.repr(flat['head_dim'])} x {text.heads} heads is not hidden_size {text.width}"
        )
    return text


def _vision_config(vision: dict[str, Any]) -> VisionConfig:
    refuse_unless(vision, hidden_act="silu", in_chans=3, in_channels=3)
    rope = section(vision, "rope_parameters")
    if rope.get("rope_type", "axial") != "axial":
        raise UsageError(f"vision rope_type {reprlib.repr(rope['rope_type'])} is not supported; only 'axial'")
    defaults = {"fullatt_block_indexes": [7, 15, 23, 31], "rope_theta": rope.get("rope_theta")}
    return read_fields(VisionConfig, _VISION, defaults | vision, "vision_config.")


def _check(config: ModelConfig) -> None:
    text, vision = config.text, config.vision
    if text.width % text.heads or text.heads % text.kv_heads:
        raise UsageError(
            f"hidden_size {text.width}, {text.heads} heads and {text.kv_heads} kv heads do not divide evenly"
        )
    if sum(text.mrope_section) * 2 != text.head_dim:
        raise UsageError(f"mrope_section {text.mrope_section} must sum to half of the head width {text.head_dim}")
    if vision.width % vision.heads or vision.head_dim % 4:
        raise UsageError(f"vision hidden_size {vision.width} over {vision.heads} heads must be a multiple of 4")
    if vision.out_width != text.width:
        raise UsageError(f"vision out_hidden_size {vision.out_width} differs from hidden_size {text.width}")
    if vision.window % (vision.merge * vision.patch):
        raise UsageError(f"window_size {vision.window} is not a multiple of {vision.merge * vision.patch} pixels")


def _model(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    vocab: int,
    *,
    vision_mlp: int,
    tied: bool = False,
) -> ModelConfig:
    text = TextConfig(layers, width, heads, kv_heads, mlp, vocab, (16, 24, 24), 1e6, 1e-6, tied)
    vision = VisionConfig(32, 1280, 16, vision_mlp, width, (7, 15, 23, 31), tokens_per_second=2.0)
    return ModelConfig(text, vision, 151655, 151656, 151652, 151653, Qwen25VL.MODEL_TYPE)


PUBLISHED = {
    "3B": _model(36, 2048, 16, 2, 11008, 151936, vision_mlp=3420, tied=True),
    "7B": _model(28, 3584, 28, 4, 18944, 152064, vision_mlp=3420),
    "32B": _model(64, 5120, 40, 8, 27648, 152064, vision_mlp=3456),
    "72B": _model(80, 8192, 64, 8, 29568, 152064, vision_mlp=3456),
}


def size_in_name(name: str) -> str | None:
    """The published size that a model's name or path speaks of: `runs/sft_7b` is of 7B. The last one counts."""
    found = re.findall(r"(?<![\d.])(\d+B)(?![A-Za-z])", name.upper())
    return next((size for size in reversed(found) if size in PUBLISHED), None)
