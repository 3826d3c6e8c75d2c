"""A model directory of random weights in the published format: for loading it, here and in other programs."""

import math
from pathlib import Path

import numpy as np

from vr1_jax.files import write_json
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.qwen25vl import abstract_model
from vr1_jax.tools.world.model import hf_config
from vr1_jax.weights.mapping import rules
from vr1_jax.weights.safetensors_writer import ShardWriter
from vr1_jax.weights.tree import parameter_shapes


def write_random_model(directory: Path, config: ModelConfig, dtype: np.dtype, seed: int = 0) -> None:
    """Weights of a size that keeps activations of order one; norms near one, biases small but not zero."""
    directory.mkdir(parents=True)
    write_json(directory / "config.json", hf_config(config))
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


def _random(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return rng.normal(0.0 if key.endswith("bias") else 1.0, 0.1, shape)
    inputs = math.prod(shape[1:])
    return rng.standard_normal(shape, np.float32) * np.float32(0.02 if "embed_tokens" in key else inputs**-0.5)
