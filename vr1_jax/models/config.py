"""Model shapes and constants, and how a family reads them from config.json: every field checked."""

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
    model_type: str  # of its family, as in config.json


Config = TypeVar("Config", TextConfig, VisionConfig)

# Far above every published model. What is made from a config before its weights are seen grows with these.
_MOST_LAYERS, _LARGEST = 1000, 2**20


def flatten_hf_config(hf: dict[str, Any]) -> dict[str, Any]:
    """The published flat layout from either layout: what older transformers and vLLM read too.

    transformers 5 nests the decoder's fields in `text_config` and writes `rope_parameters` where the
    published files have `rope_theta` and `rope_scaling`.
    """
    flat = {key: value for key, value in hf.items() if key != "text_config"}
    for key, value in section(hf, "text_config").items():
        if key not in ("model_type", "dtype", "torch_dtype") and value is not None:
            flat.setdefault(key, value)
    if dtype := flat.pop("dtype", None):
        flat["torch_dtype"] = dtype
    if rope := dict(section(flat, "rope_parameters")):
        flat.setdefault("rope_theta", rope.pop("rope_theta", 1_000_000.0))
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        rope.pop("type", None)
        flat["rope_scaling"] = {"type": "mrope" if kind in ("default", "mrope") else kind, **rope}
    flat.pop("rope_parameters", None)
    return flat


def section(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the file; empty if it is not there."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {reprlib.repr(value)}, not an object of fields")
    return value


def read_fields(kind: type[Config], names: dict[str, str], fields: dict[str, Any], where: str = "") -> Config:
    """A config of `fields`, each checked against the type that the class declares; null is as good as absent."""
    values = {}
    for ours, declared in get_type_hints(kind).items():
        name = where + names[ours]
        if (value := fields.get(names[ours])) is not None:
            most = _MOST_LAYERS if ours == "layers" else _LARGEST
            values[ours] = checked(name, value, declared, most=most)
        elif not hasattr(kind, ours):  # no default
            raise UsageError(f"config.json has no field '{name}'")
    return kind(**values)


def checked(name: str, value: Any, declared: Any, *, least: int = 1, most: int = _LARGEST) -> Any:
    if get_origin(declared) is tuple:
        kinds = get_args(declared)
        if not isinstance(value, list | tuple) or (... not in kinds and len(value) != len(kinds)):
            count = "" if ... in kinds else f"{len(kinds)} "
            raise UsageError(f"{name} is {reprlib.repr(value)}, not a list of {count}whole numbers")
        return tuple(checked(name, each, kinds[0], least=0) for each in value)
    if declared is bool:
        right, wanted = isinstance(value, bool), "true or false"
    elif declared is float:
        right, wanted = type(value) in (int, float) and 0 < value < 1e30, "a positive number"
    else:
        right, wanted = type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"
    if not right:
        raise UsageError(f"{name} is {reprlib.repr(value)}, not {wanted}")
    return declared(value)


def refuse_unless(fields: dict[str, Any], **supported: Any) -> None:
    for name, value in supported.items():
        if fields.get(name, value) not in (value, None):
            raise UsageError(f"{name}={reprlib.repr(fields[name])} is not supported; only {value!r}")


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters only, the model itself staying as it is."""

    rank: int = 0  # of the adapters; 0 trains the whole model
    alpha: float = 32.0  # their product is scaled by alpha / rank
    # Which matrices of the layers get one; the vision tower has qkv for query, key and value.
    targets: tuple[str, ...] = ("query", "key", "value", "out", "gate", "up", "down", "qkv")
    vision: bool = False  # the vision tower's layers too

    def __post_init__(self):
        if self.rank < 0:
            raise UsageError(f"rank is {self.rank}; it must not be negative")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
