"""Dimensions of the published Qwen2.5-VL models: to plan and to time with, where no checkpoint is at hand."""

import re

from vr1_jax.models.config import ModelConfig, TextConfig, VisionConfig


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
    return ModelConfig(text, vision, 151655, 151656, 151652, 151653)


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
