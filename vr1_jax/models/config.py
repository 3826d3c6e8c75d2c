"""Model shapes and constants, read from a checkpoint's `config.json` in either layout in the wild."""

import reprlib
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vr1_jax.errors import UsageError


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


Config = TypeVar("Config", TextConfig, VisionConfig)

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
# Far above every published model. What is made from a config before its weights are seen grows with these.
_MOST_LAYERS, _LARGEST = 1000, 2**20


def flatten_hf_config(hf: dict[str, Any]) -> dict[str, Any]:
    """The published flat layout from either layout: what older transformers and vLLM read too.

    transformers 5 nests the decoder's fields in `text_config` and writes `rope_parameters` where the
    published files have `rope_theta` and `rope_scaling`.
    """
    flat = {key: value for key, value in hf.items() if key != "text_config"}
    for key, value in _object(hf, "text_config").items():
        if key not in ("model_type", "dtype", "torch_dtype") and value is not None:
            flat.setdefault(key, value)
    if dtype := flat.pop("dtype", None):
        flat["torch_dtype"] = dtype
    if rope := dict(_object(flat, "rope_parameters")):
        flat.setdefault("rope_theta", rope.pop("rope_theta", 1_000_000.0))
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        rope.pop("type", None)
        flat["rope_scaling"] = {"type": "mrope" if kind in ("default", "mrope") else kind, **rope}
    flat.pop("rope_parameters", None)
    return flat


def parse_hf_config(hf: dict[str, Any]) -> ModelConfig:
    if hf.get("model_type") != "qwen2_5_vl":
        raise UsageError(
            f"model_type is {reprlib.repr(hf.get('model_type'))}; this program runs 'qwen2_5_vl' (Qwen2.5-VL)"
        )
    flat = flatten_hf_config(hf)
    text, vision = _text_config(flat), _vision_config(_object(flat, "vision_config"))
    tokens = {
        ours: _checked(theirs, flat.get(theirs, default), int, least=0, most=text.vocab - 1)
        for ours, (theirs, default) in _TOKENS.items()
    }
    config = ModelConfig(text, vision, **tokens)
    _check(config)
    return config


def _text_config(flat: dict[str, Any]) -> TextConfig:
    _refuse_unless(flat, hidden_act="silu", use_sliding_window=False, attention_dropout=0.0)
    layer_types = flat.get("layer_types")
    if isinstance(layer_types, list) and "sliding_attention" in layer_types:
        raise UsageError("layer_types has 'sliding_attention'; only full attention is supported")
    rope = _object(flat, "rope_scaling")
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
    text = _read(TextConfig, _TEXT, defaults | flat)
    if flat.get("head_dim") not in (None, text.head_dim):
        raise UsageError(
            f"head_dim {reprlib.repr(flat['head_dim'])} x {text.heads} heads is not hidden_size {text.width}"
        )
    return text


def _vision_config(vision: dict[str, Any]) -> VisionConfig:
    _refuse_unless(vision, hidden_act="silu", in_chans=3, in_channels=3)
    rope = _object(vision, "rope_parameters")
    if rope.get("rope_type", "axial") != "axial":
        raise UsageError(f"vision rope_type {reprlib.repr(rope['rope_type'])} is not supported; only 'axial'")
    defaults = {"fullatt_block_indexes": [7, 15, 23, 31], "rope_theta": rope.get("rope_theta")}
    return _read(VisionConfig, _VISION, defaults | vision, "vision_config.")


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the file; empty if it is not there."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {reprlib.repr(value)}, not an object of fields")
    return value


def _read(kind: type[Config], names: dict[str, str], fields: dict[str, Any], where: str = "") -> Config:
    """A config of `fields`, each checked against the type that the class declares; null is as good as absent."""
    values = {}
    for ours, declared in get_type_hints(kind).items():
        name = where + names[ours]
        if (value := fields.get(names[ours])) is not None:
            most = _MOST_LAYERS if ours == "layers" else _LARGEST
            values[ours] = _checked(name, value, declared, most=most)
        elif not hasattr(kind, ours):  # no default
            raise UsageError(f"config.json has no field '{name}'")
    return kind(**values)


def _checked(name: str, value: Any, declared: Any, *, least: int = 1, most: int = _LARGEST) -> Any:
    if get_origin(declared) is tuple:
        kinds = get_args(declared)
        if not isinstance(value, list | tuple) or (... not in kinds and len(value) != len(kinds)):
            count = "" if ... in kinds else f"{len(kinds)} "
            raise UsageError(f"{name} is {reprlib.repr(value)}, not a list of {count}whole numbers")
        return tuple(_checked(name, each, kinds[0], least=0) for each in value)
    if declared is bool:
        right, wanted = isinstance(value, bool), "true or false"
    elif declared is float:
        right, wanted = type(value) in (int, float) and 0 < value < 1e30, "a positive number"
    else:
        right, wanted = type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"
    if not right:
        raise UsageError(f"{name} is {reprlib.repr(value)}, not {wanted}")
    return declared(value)


def _refuse_unless(fields: dict[str, Any], **supported: Any) -> None:
    for name, value in supported.items():
        if fields.get(name, value) not in (value, None):
            raise UsageError(f"{name}={reprlib.repr(fields[name])} is not supported; only {value!r}")


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
