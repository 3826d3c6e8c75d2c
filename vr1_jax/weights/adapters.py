"""The adapters of a LoRA run on disk: merged into their base as it is read, or exported for PEFT."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from vr1_jax.errors import UserError
from vr1_jax.files import read_json, whole_directory
from vr1_jax.models.adapters import adapted_rules, add_adapters
from vr1_jax.models.base import unstack
from vr1_jax.models.config import LoraConfig, ModelConfig
from vr1_jax.models.families import abstract_model, family_of
from vr1_jax.models.mapping import Rule, parameter_shapes
from vr1_jax.weights import blocks
from vr1_jax.weights.array_store import StoredParameters
from vr1_jax.weights.blocks import Index
from vr1_jax.weights.checkpoint_dir import META, Checkpoint


def lora_of(root: Path) -> tuple[LoraConfig, Path] | None:
    """Of a LoRA run: its adapters' settings, and the model that they belong to."""
    settings = read_json(root / META).get("lora") if (root / META).is_file() else None
    if settings is None:
        return None
    base = Path(settings.pop("base"))
    return LoraConfig(**settings | {"targets": tuple(settings["targets"])}), base


class MergedParameters:
    """Parameters of a base with adapters merged in, block by block, in fp32."""

    def __init__(self, base: Any, checkpoint: Checkpoint, lora: LoraConfig):
        self._base, self._lora = base, lora
        self._adapters = read_adapters(checkpoint, lora)

    @property
    def dtypes(self) -> set[np.dtype]:
        return self._base.dtypes

    def read(self, path: str, index: Index, dtype: np.dtype) -> np.ndarray:
        if path not in self._adapters:
            return self._base.read(path, index, dtype)
        block = self._base.read(path, index, np.dtype(np.float32))
        pairs = self._adapters[path]
        for row, layer in enumerate(range(*index[0].indices(len(pairs)))):
            a, b = pairs[layer]
            a, b = a[(*index[1 : a.ndim], slice(None))], b[(slice(None), *index[a.ndim :])]
            block[row] += self._lora.scale * np.tensordot(a, b, 1)
        return block.astype(dtype)


def read_adapters(checkpoint: Checkpoint, lora: LoraConfig) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """(A, B) of each layer, by the name of the stacked parameter that they change."""
    shapes = adapter_shapes(checkpoint.config, lora)
    stored = StoredParameters(checkpoint.directory, shapes)
    arrays = {
        name: stored.read(name, blocks.everything(shape), np.dtype(np.float32)) for name, shape in shapes.items()
    }
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for rule in adapted_rules(family_of(checkpoint.config), checkpoint.config, lora):
        tower, layers, name = rule.path.split(".")
        if f"{rule.path}.lora_a" in arrays:  # the vision tower's layers are stacked
            stacked = (arrays[f"{rule.path}.{part}"] for part in ("lora_a", "lora_b"))
            found[rule.path] = list(zip(*stacked, strict=True))
        else:
            prefixes = (f"{tower}.{layers}.{layer}.{name}" for layer in range(checkpoint.config.text.layers))
            found[rule.path] = [(arrays[f"{p}.lora_a"], arrays[f"{p}.lora_b"]) for p in prefixes]
    return found


def adapter_shapes(config: ModelConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """As a run saves them: the decoder's a layer each."""
    model = abstract_model(config)
    adapted = jax.eval_shape(lambda m: unstack(add_adapters(m, lora, jax.random.key(0))), model)
    return {name: shape for name, shape in parameter_shapes(adapted).items() if ".lora_" in name}


def export_adapter(checkpoint: Checkpoint, out: Path, lora: LoraConfig, base: Path) -> None:
    """A directory that `peft` loads beside the base model in transformers."""
    family, rules = family_of(checkpoint.config), {}
    tensors: dict[str, np.ndarray] = {}
    found = read_adapters(checkpoint, lora)
    for rule in adapted_rules(family, checkpoint.config, lora):
        rules[rule.path] = rule
        for layer, (a, b) in enumerate(found[rule.path]):
            module = family.module_name(rule.key.format(layer)).removesuffix(".weight")
            rank = lora.rank
            tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, rank).T)
            tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(b.reshape(rank, -1).T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": "|".join(_module_pattern(family, rule) for rule in rules.values()),
    }
    with whole_directory(out) as directory:
        safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
        (directory / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _module_pattern(family: Any, rule: Rule) -> str:
    """PEFT matches whole names of modules."""
    return re.escape(family.module_name(rule.key).removesuffix(".weight")).replace(re.escape("{}"), r"\d+")


def check_is_lora(checkpoint: Path) -> tuple[LoraConfig, Path]:
    found = lora_of(checkpoint)
    if found is None:
        raise UserError(f"{checkpoint}: has no adapters to export: its run trained the whole model")
    return found
