"""A Hugging Face model directory: checked whole when opened, then read in slices.

Key names may be the published ones or those of transformers 5. Only safetensors files are read: a pickled
checkpoint can run code.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vr1_jax.errors import UsageError, UserError
from vr1_jax.files import read_json, write_json
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.families import abstract_model, family_of, parse_hf_config
from vr1_jax.models.mapping import Rule, parameter_shapes
from vr1_jax.weights import blocks
from vr1_jax.weights.blocks import Index

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}

# Old checkpoints carry rotary frequencies, which follow from the config.
_DERIVED_BUFFERS = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")


@dataclass(frozen=True)
class Tensor:
    file: Path
    key: str  # as spelled in the file
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, *index: slice) -> np.ndarray:
        # Opened for each read: the pages of a file that stays mapped would count as this process's memory.
        with safe_open(self.file, framework="numpy") as opened:
            return opened.get_slice(self.key)[index]


class HFDirectory:
    """The weights of a model directory, under our parameter names."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.hf_config = read_hf_config(directory)
        self.config: ModelConfig = parse_config(self.hf_config, directory)
        self._family = family_of(self.config)
        self.shapes = parameter_shapes(abstract_model(self.config))
        self._rules = {rule.path: rule for rule in self._family.rules(self.config)}
        self._tensors = _collect(directory, self._family.published_name)
        self._check()

    @property
    def dtypes(self) -> set[np.dtype]:
        return {tensor.dtype for tensor in self._tensors.values()}

    def read(self, path: str, index: Index, dtype: np.dtype) -> np.ndarray:
        """A block of one of our parameters, from the bytes that hold it and no others."""
        rule, shape = self._rules[path], self.shapes[path]
        out = np.empty(blocks.block_shape(index, shape), dtype)
        if not rule.stacked:
            _fill(out, rule, self._tensors[rule.key], shape, index)
            return out
        for row, layer in enumerate(range(*index[0].indices(shape[0]))):
            _fill(out[row], rule, self._tensors[rule.key.format(layer)], shape[1:], index[1:])
        return out

    def _check(self) -> None:
        expected = {
            key: rule.published_shape(rule.layer_shape(self.shapes[path]))
            for path, rule in self._rules.items()
            for key in rule.keys(self.shapes[path])
        }
        if self.config.text.tied and "lm_head.weight" in self._tensors:
            self._drop_tied_head()
        if missing := [key for key in expected if key not in self._tensors]:
            raise UserError(f"{self.directory}: weights are missing: {_some(missing)}")
        if unknown := [tensor.key for key, tensor in self._tensors.items() if key not in expected]:
            raise UserError(f"{self.directory}: weights that {self._family.NAME} does not have: {_some(unknown)}")
        for key, tensor in self._tensors.items():
            if tensor.shape != expected[key]:
                raise UserError(
                    f"{tensor.file}: {tensor.key} has shape {list(tensor.shape)}, "
                    f"config.json asks for {list(expected[key])}"
                )

    def _drop_tied_head(self) -> None:
        """A tied model has no head of its own; a file may still hold a copy of the embedding."""
        head, embed = self._tensors.pop("lm_head.weight"), self._tensors.get("model.embed_tokens.weight")
        if embed is None or head.shape != embed.shape or not _same_rows(head, embed):
            raise UserError(
                f"{head.file}: {head.key} differs from the embedding, but config.json says tie_word_embeddings; "
                "set it to false or remove the key"
            )


def read_hf_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json: not a Hugging Face model directory")
    return read_json(path)


def parse_config(hf_config: dict[str, Any], directory: Path) -> ModelConfig:
    try:
        return parse_hf_config(hf_config)
    except UsageError as error:
        raise UserError(f"{directory / 'config.json'}: {error}") from error


def _weight_files(directory: Path) -> dict[Path, set[str]]:
    """The safetensors files, with the keys that the index promises of each (none without an index)."""
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file() and index.is_file():
        raise UserError(f"{directory}: both {SINGLE_FILE} and {INDEX_FILE} exist; remove the one that is stale")
    if single.is_file():
        return {single: set()}
    if index.is_file():
        return _indexed_files(index)
    pickled = sorted(path.name for suffix in ("bin", "pt", "pth") for path in directory.glob(f"*.{suffix}"))
    if pickled:
        raise UserError(
            f"{directory}: only pickled weights ({pickled[0]}), which could run code; "
            "rewrite them with transformers, as safetensors: from_pretrained(DIR).save_pretrained(NEW)"
        )
    raise UserError(f"{directory}: neither {SINGLE_FILE} nor {INDEX_FILE}; is the download complete?")


def _indexed_files(index: Path) -> dict[Path, set[str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map")
    files: dict[Path, set[str]] = {}
    for key, name in weight_map.items():
        # Plain names only: an index must not reach outside its directory.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {key} is said to be in {name!r}, not the name of a safetensors file here")
        files.setdefault(index.parent / name, set()).add(key)
    for file in files:
        if not file.is_file():
            raise UserError(f"{index}: names {file.name}, which does not exist; is the download complete?")
    return files


def _collect(directory: Path, published_name: Callable[[str], str]) -> dict[str, Tensor]:
    """Every tensor by its published name."""
    tensors: dict[str, Tensor] = {}
    for file, promised in _weight_files(directory).items():
        found = _tensors_in(file)
        if promised and (wrong := promised ^ {tensor.key for tensor in found}):
            raise UserError(f"{directory / INDEX_FILE} and {file.name} disagree about {_some(sorted(wrong))}")
        for tensor in found:
            name = published_name(tensor.key)
            if name.endswith(_DERIVED_BUFFERS):
                continue
            if name in tensors:
                other = tensors[name]
                raise UserError(f"{file}: {tensor.key} is a duplicate of {other.key} in {other.file.name}")
            tensors[name] = tensor
    return tensors


def _tensors_in(file: Path) -> list[Tensor]:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = [(key, opened.get_slice(key)) for key in opened.keys()]  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{file}: truncated or not a safetensors file ({error}); fetch it again") from error
    for key, part in slices:
        if part.get_dtype() not in DTYPES and not key.endswith(_DERIVED_BUFFERS):
            raise UserError(
                f"{file}: {key} is {part.get_dtype()}; supported are {', '.join(DTYPES)} (no quantised weights)"
            )
    return [
        Tensor(file, key, tuple(part.get_shape()), DTYPES.get(part.get_dtype(), np.dtype(np.void)))
        for key, part in slices
    ]


def _fill(out: np.ndarray, rule: Rule, tensor: Tensor, shape: tuple[int, ...], index: Index) -> None:
    runs = rule.published_runs(shape, index)
    whole = all(len(axis) == 1 for axis in runs)
    block = tensor.read(*(axis[0] for axis in runs)) if whole else np.block(_nested(runs, tensor))
    blocks.copy_into(out, rule.from_published(block, out.shape))
    if not blocks.is_finite(out):
        raise UserError(f"{tensor.file}: {tensor.key} has values that are not finite numbers in {out.dtype}")


def _nested(runs: list[list[slice]], tensor: Tensor, *outer: slice) -> list:
    """Nested lists of slices, as `np.block` wants them."""
    first, *rest = runs
    if not rest:
        return [tensor.read(*outer, run) for run in first]
    return [_nested(rest, tensor, *outer, run) for run in first]


def _same_rows(a: Tensor, b: Tensor) -> bool:
    steps = blocks.write_order(a.shape, a.dtype.itemsize, stacked=False)
    return a.dtype == b.dtype and all(a.read(*index).tobytes() == b.read(*index).tobytes() for index in steps)


def _some(keys: list[str]) -> str:
    return ", ".join(itertools.islice(keys, 3)) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


# Writes safetensors shards tensor by tensor: the library's own writer wants a whole shard in memory.
#
# A file is eight bytes with the header's length, a JSON header, and the tensors' bytes. With all shapes known
# beforehand the header comes first, and tensors go to their places in any order.

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardWriter:
    """Shards of one model, of one dtype, each at most `max_bytes` where no single tensor is larger."""

    def __init__(self, directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, max_bytes: int):
        self._dtype = dtype
        self._places: dict[str, tuple[Path, int, int]] = {}  # key -> file, offset, length
        sizes = {key: math.prod(shape) * dtype.itemsize for key, shape in shapes.items()}
        self.total_bytes = sum(sizes.values())
        shards = plan_shards(sizes, max_bytes)
        for number, keys in enumerate(shards, start=1):
            name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._start_file(directory / name, {key: shapes[key] for key in keys})
        if len(shards) > 1:
            files = {key: place[0].name for key, place in self._places.items()}
            write_json(directory / INDEX_FILE, {"metadata": {"total_size": self.total_bytes}, "weight_map": files})

    def write(self, key: str, tensor: np.ndarray) -> None:
        file, offset, length = self._places[key]
        content = np.ascontiguousarray(tensor, self._dtype).view(np.uint8).reshape(-1)
        if len(content) != length:
            raise ValueError(f"{key}: {len(content)} bytes for a place of {length}")
        with file.open("r+b") as opened:
            opened.seek(offset)
            opened.write(content)

    def _start_file(self, file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for key, shape in shapes.items():
            length = math.prod(shape) * self._dtype.itemsize
            header[key] = {
                "dtype": _NAMES[self._dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + length],
            }
            offset += length
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # data starts aligned
        data = 8 + len(encoded)
        with file.open("xb") as opened:
            opened.write(len(encoded).to_bytes(8, "little") + encoded)
            os.truncate(opened.fileno(), data + offset)
        for key in shapes:
            begin, end = header[key]["data_offsets"]
            self._places[key] = file, data + begin, end - begin


def plan_shards(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Keys in their given order, filled greedily."""
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards
