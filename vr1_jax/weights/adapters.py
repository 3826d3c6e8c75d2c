"""The adapters of a LoRA run on disk: merged into their base as it is read, or exported for PEFT."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from vr1_jax.errors import UserError
from vr1_jax.files import check_output_directory, read_json, whole_directory, write_json
from vr1_jax.models.adapters import adapted_rules, add_adapters
from vr1_jax.models.base import unstack
from vr1_jax.models.config import LoraConfig, ModelConfig
from vr1_jax.models.families import abstract_model, family_of
from vr1_jax.models.mapping import parameter_shapes
from vr1_jax.weights import blocks
from vr1_jax.weights.array_store import StoredParameters
from vr1_jax.weights.blocks import Index
from vr1_jax.weights.checkpoint_dir import META, Checkpoint, find_checkpoint

_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names


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


def export_adapter(root: Path, out: Path, *, step: int | None = None, force: bool = False) -> None:
    """A directory that `peft` loads beside the base model in transformers."""
    found = lora_of(root)
    if found is None:
        raise UserError(f"{root}: has no adapters to export: its run trained the whole model")
    (lora, base), checkpoint = found, find_checkpoint(root, step)
    check_output_directory(out, source=root, force=force, replaceable=_is_exported_adapter)
    family, tensors, patterns = family_of(checkpoint.config), {}, []
    adapters = read_adapters(checkpoint, lora)
    for rule in adapted_rules(family, checkpoint.config, lora):
        module = family.module_name(rule.key).removesuffix(".weight")
        patterns.append(re.escape(module).replace(re.escape("{}"), r"\d+"))
        for layer, (a, b) in enumerate(adapters[rule.path]):
            name = f"base_model.model.{module.format(layer)}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, lora.rank).T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.reshape(lora.rank, -1).T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": "|".join(patterns),  # which PEFT matches with whole names of modules
    }
    with whole_directory(out) as directory:
        safetensors.numpy.save_file(tensors, directory / _WEIGHTS, {"format": "pt"})
        write_json(directory / _SETTINGS, settings)


def _is_exported_adapter(path: Path) -> bool:
    return all(entry.name in (_WEIGHTS, _SETTINGS) for entry in path.iterdir())
