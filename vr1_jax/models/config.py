"""Model shapes and constants, read from a checkpoint's `config.json` in either layout in the wild."""

from dataclasses import dataclass
from typing import Any


class UnsupportedModel(ValueError):
    """The checkpoint asks for something this model does not compute; the message names the field."""


@dataclass(frozen=True)
class VisionConfig:
    layers: int
    width: int
    heads: int
    mlp: int
    out_width: int
    full_attention_layers: tuple[int, ...]
    channels: int = 3
    patch: int = 14
    merge: int = 2  # side of the block of patches that becomes one visual token
    temporal: int = 2  # frames in one slice
    window: int = 112  # pixels, side of an attention window
    tokens_per_second: float = 4.0  # transformers' class default; published checkpoints say 2
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patch_values(self) -> int:
        """R: numbers in one patch."""
        return self.channels * self.temporal * self.patch**2

    @property
    def window_units(self) -> int:
        """Side of an attention window, in merged units."""
        return self.window // self.merge // self.patch


@dataclass(frozen=True)
class TextConfig:
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    mrope_section: tuple[int, int, int]  # rotary frequencies that follow time, row, column
    rope_theta: float
    norm_eps: float
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class ModelConfig:
    text: TextConfig
    vision: VisionConfig
    image_token: int
    video_token: int
    vision_start_token: int
    vision_end_token: int


def flatten_hf_config(hf: dict[str, Any]) -> dict[str, Any]:
    """The published flat layout from either layout: what older transformers and vLLM read too.

    transformers 5 nests the decoder's fields in `text_config` and writes `rope_parameters` where the
    published files have `rope_theta` and `rope_scaling`.
    """
    flat = {key: value for key, value in hf.items() if key != "text_config"}
    for key, value in hf.get("text_config", {}).items():
        if key not in ("model_type", "dtype", "torch_dtype") and value is not None:
            flat.setdefault(key, value)
    if dtype := flat.pop("dtype", None):
        flat["torch_dtype"] = dtype
    if rope := flat.pop("rope_parameters", None):
        rope = dict(rope)
        flat.setdefault("rope_theta", rope.pop("rope_theta", 1_000_000.0))
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        rope.pop("type", None)
        flat["rope_scaling"] = {"type": "mrope" if kind in ("default", "mrope") else kind, **rope}
    return flat


def parse_hf_config(hf: dict[str, Any]) -> ModelConfig:
    if hf.get("model_type") != "qwen2_5_vl":
        raise UnsupportedModel(
            f"model_type is {hf.get('model_type')!r}; this program runs 'qwen2_5_vl' (Qwen2.5-VL)"
        )
    flat = flatten_hf_config(hf)
    try:
        config = ModelConfig(
            text=_text_config(flat),
            vision=_vision_config(flat["vision_config"]),
            image_token=flat.get("image_token_id", 151655),
            video_token=flat.get("video_token_id", 151656),
            vision_start_token=flat.get("vision_start_token_id", 151652),
            vision_end_token=flat.get("vision_end_token_id", 151653),
        )
    except KeyError as missing:
        raise UnsupportedModel(f"config.json has no field {missing}") from None
    _check(config)
    return config


def _text_config(flat: dict[str, Any]) -> TextConfig:
    _refuse_unless(flat, hidden_act="silu", use_sliding_window=False, attention_dropout=0.0)
    if "sliding_attention" in flat.get("layer_types", ()):
        raise UnsupportedModel("layer_types has 'sliding_attention'; only full attention is supported")
    rope = flat.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "mrope"))
    if kind not in ("mrope", "default"):
        raise UnsupportedModel(f"rope_scaling type {kind!r} is not supported; published checkpoints use 'mrope'")
    heads, width = flat["num_attention_heads"], flat["hidden_size"]
    if "head_dim" in flat and flat["head_dim"] * heads != width:
        raise UnsupportedModel(f"head_dim {flat['head_dim']} x {heads} heads is not hidden_size {width}")
    return TextConfig(
        layers=flat["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=flat.get("num_key_value_heads", heads),
        mlp=flat["intermediate_size"],
        vocab=flat["vocab_size"],
        mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
        rope_theta=float(flat.get("rope_theta", 1_000_000.0)),
        norm_eps=float(flat.get("rms_norm_eps", 1e-5)),
        tied=bool(flat.get("tie_word_embeddings", False)),
    )


def _vision_config(vision: dict[str, Any]) -> VisionConfig:
    _refuse_unless(vision, hidden_act="silu")
    rope = vision.get("rope_parameters") or {}
    if rope.get("rope_type", "axial") != "axial":
        raise UnsupportedModel(f"vision rope_type {rope['rope_type']!r} is not supported; only 'axial'")
    return VisionConfig(
        layers=vision["depth"],
        width=vision["hidden_size"],
        heads=vision["num_heads"],
        mlp=vision["intermediate_size"],
        out_width=vision["out_hidden_size"],
        full_attention_layers=tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
        channels=vision.get("in_chans", vision.get("in_channels", 3)),
        patch=vision.get("patch_size", 14),
        merge=vision.get("spatial_merge_size", 2),
        temporal=vision.get("temporal_patch_size", 2),
        window=vision.get("window_size", 112),
        tokens_per_second=float(vision.get("tokens_per_second", 4)),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
    )


def _refuse_unless(fields: dict[str, Any], **supported: Any) -> None:
    for name, value in supported.items():
        if fields.get(name, value) not in (value, None):
            raise UnsupportedModel(f"{name}={fields[name]!r} is not supported; only {value!r}")


def _check(config: ModelConfig) -> None:
    text, vision = config.text, config.vision
    if text.width % text.heads or text.heads % text.kv_heads:
        raise UnsupportedModel(
            f"hidden_size {text.width}, {text.heads} heads and {text.kv_heads} kv heads do not divide evenly"
        )
    if sum(text.mrope_section) * 2 != text.head_dim:
        raise UnsupportedModel(
            f"mrope_section {text.mrope_section} must sum to half of the head width {text.head_dim}"
        )
    if vision.width % vision.heads or vision.head_dim % 4:
        raise UnsupportedModel(
            f"vision hidden_size {vision.width} over {vision.heads} heads must be a multiple of 4"
        )
    if vision.out_width != text.width:
        raise UnsupportedModel(f"vision out_hidden_size {vision.out_width} differs from hidden_size {text.width}")
    if vision.window % (vision.merge * vision.patch):
        raise UnsupportedModel(
            f"window_size {vision.window} is not a multiple of {vision.merge * vision.patch} pixels"
        )
