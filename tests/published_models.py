"""Tiny random models as transformers writes them, and helpers that vary and spoil them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

ASSETS = {"tokenizer.json": "{}", "preprocessor_config.json": '{"patch_size": 14}', "LICENSE": "terms"}


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Callable[..., Path]:
    """(tied, dtype) -> a directory with published key names and transformers 5's nested config. Read only."""
    made: dict[tuple[bool, str], Path] = {}

    def get(tied: bool = True, dtype: str = "bfloat16") -> Path:
        if (tied, dtype) not in made:
            made[tied, dtype] = tmp_path_factory.mktemp("published") / "model"
            _save(made[tied, dtype], tied, dtype)
        return made[tied, dtype]

    return get


@pytest.fixture
def altered(tmp_path, published) -> Callable[..., Path]:
    """A copy of a model (tied, bf16) after `change(tensors)`, which edits the dict or returns another."""

    def make(change: Callable[[dict], dict | None] = lambda tensors: None, source: Path | None = None) -> Path:
        directory = tmp_path / "altered"
        shutil.copytree(source or published(), directory)
        tensors = load_file(directory / "model.safetensors")
        save_file(change(tensors) or tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return make


def shard(directory: Path, *shards: dict[str, np.ndarray]) -> Path:
    """Replace the single file by shards and an index."""
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number}.safetensors"
        save_file(tensors, directory / name)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def halves(tensors: dict[str, np.ndarray]) -> tuple[dict, dict]:
    keys = sorted(tensors)
    middle = len(keys) // 2
    return {key: tensors[key] for key in keys[:middle]}, {key: tensors[key] for key in keys[middle:]}


def in_transformers_spelling(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def rename(key: str) -> str:
        if key.startswith("visual."):
            return "model." + key
        return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key

    return {rename(key): value for key, value in tensors.items()}


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def differences(a: Path, b: Path) -> list[str]:
    """Keys that are not the same bits, dtype and shape in both directories."""
    first, second = tensors_of(a), tensors_of(b)
    return [
        key
        for key in sorted(first.keys() | second.keys())
        if key not in first
        or key not in second
        or first[key].dtype != second[key].dtype
        or first[key].shape != second[key].shape
        or first[key].tobytes() != second[key].tobytes()
    ]


def _save(directory: Path, tied: bool, dtype: str) -> None:
    import torch
    from reference_model import random_reference

    random_reference(tied).to(getattr(torch, dtype)).save_pretrained(directory)
    for name, content in ASSETS.items():
        (directory / name).write_text(content)
