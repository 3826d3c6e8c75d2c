"""Writes safetensors shards tensor by tensor: the library's own writer wants a whole shard in memory.

A file is eight bytes with the header's length, a JSON header, and the tensors' bytes. With all shapes known
beforehand the header comes first, and tensors go to their places in any order.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vr1_jax.files import write_json
from vr1_jax.weights.hf_directory import DTYPES, INDEX_FILE, SINGLE_FILE

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
