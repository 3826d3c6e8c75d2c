"""What a result depends on, as hashes and versions: the same identity gives the same answers."""

import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import jax

from vr1_jax.weights.checkpoint_dir import ASSETS, PARAMS, assets_directory, find_checkpoint, is_checkpoint

# Assets that decide what the model is asked and when it stops; licences and image processors do not.
ASKING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
LIBRARIES = ("vr1_jax", "jax", "jaxlib", "flax", "transformers", "tokenizers", "decord", "av", "pillow", "numpy")


def weights_hash(model: Path) -> str:
    """Of the safetensors files of a Hugging Face directory, or of a checkpoint's newest arrays."""
    if is_checkpoint(model):
        root = find_checkpoint(model).directory / PARAMS
        return _hash(root, (path for path in root.rglob("*") if path.is_file()))
    return _hash(model, model.glob("*.safetensors"))


def assets_hash(model: Path) -> str:
    """Of config, tokenizer, chat template and stop tokens."""
    root = assets_directory(model)
    return _hash(root, (root / name for name in ASKING if name in ASSETS and (root / name).is_file()))


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def device_kind() -> str:
    return jax.devices()[0].device_kind


def _hash(root: Path, files: Iterable[Path]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()
