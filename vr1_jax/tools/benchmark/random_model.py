"""A model directory of random weights in the published format: for loading it, here and in other programs."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.files import write_json
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.qwen25vl import abstract_model
from vr1_jax.weights.mapping import rules
from vr1_jax.weights.safetensors_writer import ShardWriter
from vr1_jax.weights.tree import parameter_shapes


def write_random_model(directory: Path, config: ModelConfig, dtype: np.dtype, seed: int = 0) -> None:
    """Weights of a size that keeps activations of order one; norms near one, biases small but not zero."""
    directory.mkdir(parents=True)
    write_json(directory / "config.json", published_config(config))
    shapes = parameter_shapes(abstract_model(config))
    tensors = {
        key: rule.published_shape(rule.layer_shape(shapes[rule.path]))
        for rule in rules(config)
        for key in rule.keys(shapes[rule.path])
    }
    writer = ShardWriter(directory, tensors, dtype, max_bytes=5 * 10**9)
    rng = np.random.default_rng(seed)
    for key, shape in tensors.items():
        writer.write(key, _random(rng, key, shape).astype(dtype))


def published_config(config: ModelConfig) -> dict[str, Any]:
    """config.json in the flat layout, as `models.config.parse_hf_config` reads it."""
    text, vision = config.text, config.vision
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "intermediate_size": text.mlp,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "vocab_size": text.vocab,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "tie_word_embeddings": text.tied,
        "use_sliding_window": False,
        "image_token_id": config.image_token,
        "video_token_id": config.video_token,
        "vision_start_token_id": config.vision_start_token,
        "vision_end_token_id": config.vision_end_token,
        "vision_config": {
            "depth": vision.layers,
            "hidden_size": vision.width,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "out_hidden_size": vision.out_width,
            "fullatt_block_indexes": list(vision.full_attention_layers),
            "in_chans": vision.channels,
            "patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal,
            "window_size": vision.window,
            "tokens_per_second": int(vision.tokens_per_second),  # transformers refuses 2.0
        },
    }


def _random(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return rng.normal(0.0 if key.endswith("bias") else 1.0, 0.1, shape)
    inputs = math.prod(shape[1:])
    return rng.standard_normal(shape, np.float32) * np.float32(0.02 if "embed_tokens" in key else inputs**-0.5)
