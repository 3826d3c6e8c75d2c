"""Parameters on disk: an Orbax checkpoint that is written and read one block at a time.

Orbax saves whole arrays and holds about three copies of each meanwhile: 5 GB for the largest of a 3B model.
So Orbax writes the tree (a skeleton of the smallest arrays), and each array is then replaced through
tensorstore, the library and format underneath. `orbax.load` restores the result like any other checkpoint,
and what Orbax saved is read here too; tests hold both.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore as ts

from vr1_jax.errors import UserError
from vr1_jax.files import read_json
from vr1_jax.models.mapping import nest
from vr1_jax.weights import blocks
from vr1_jax.weights.blocks import Index
from vr1_jax.weights.checkpoint_dir import PARAMS

_CHUNK_BYTES = 32 * 2**20


def save_context(stacked: tuple[str, ...] = ("layers",)) -> ocp.Context:
    """How Orbax should save our trees: layers in separate chunks, so that one can be read without the rest."""

    def storage(path: Any, _: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
        if not any(getattr(key, "key", None) in stacked for key in path):
            return None
        return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,))

    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    context.array.saving.scoped_storage_options_creator = storage
    return context


class ParameterWriter:
    """Writes parameters of known shapes, block by block; every block must consist of whole chunks."""

    def __init__(self, step_directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype):
        skeleton = {path: np.zeros((1,) * len(shape), dtype) for path, shape in shapes.items()}
        context = ocp.Context()
        context.array.saving.use_ocdbt = False
        with context, _quiet_orbax():
            ocp.save(step_directory, nest(skeleton), checkpointable_name=PARAMS)
        self._directory, self._shapes, self._dtype = step_directory / PARAMS, shapes, dtype

    def create(self, path: str, stacked: bool) -> ts.TensorStore:
        shape = self._shapes[path]
        file, part = blocks.chunk_shapes(shape, self._dtype.itemsize, stacked)
        return ts.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{self._directory / path}/"},
                # Zeros are data: without them on disk a lost file would read as zeros.
                "store_data_equal_to_fill_value": True,
            },
            dtype=ts.dtype(self._dtype),
            shape=shape,
            chunk_layout=ts.ChunkLayout(write_chunk_shape=file, read_chunk_shape=part),
            create=True,
            delete_existing=True,
        ).result()


class StoredParameters:
    """Reads blocks of the parameters that this module or Orbax wrote."""

    def __init__(self, step_directory: Path, shapes: Mapping[str, tuple[int, ...]]):
        self._directory = step_directory.resolve() / PARAMS  # tensorstore takes no ..
        metadata = read_json(self._directory / "_METADATA")
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        self._ocdbt = bool(metadata.get("use_ocdbt"))
        self._stores = {path: self._open(path, shape) for path, shape in shapes.items()}
        self._whole: tuple[str, np.ndarray] | None = None

    @property
    def dtypes(self) -> set[np.dtype]:
        return {store.dtype.numpy_dtype for store in self._stores.values()}

    def read(self, path: str, index: Index, dtype: np.dtype) -> np.ndarray:
        block = self._block(path, index)
        if block.dtype == dtype and block.flags.c_contiguous:
            return block
        out = np.empty(block.shape, dtype)
        blocks.copy_into(out, block)
        return out

    def _block(self, path: str, index: Index) -> np.ndarray:
        store = self._stores[path]
        wanted = blocks.block_shape(index, store.shape)
        if wanted[0] < (store.chunk_layout.read_chunk.shape or (1,))[0]:
            # One chunk holds several layers: read once what every layer would read again.
            if self._whole is None or self._whole[0] != path:
                self._whole = None
                self._whole = path, self._read(path, blocks.everything(store.shape))
            return self._whole[1][index]
        return self._read(path, index)

    def _read(self, path: str, index: Index) -> np.ndarray:
        try:
            block = self._stores[path][index].read().result()
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self._directory}: cannot read {path}, a file is damaged or lost: {error}"
            ) from error
        if not blocks.is_finite(block):
            raise UserError(f"{self._directory}: {path} has values that are not finite numbers")
        return block

    def _open(self, path: str, shape: tuple[int, ...]) -> ts.TensorStore:
        files = {"driver": "file", "path": f"{self._directory}/"}
        kvstore = (
            {"driver": "ocdbt", "base": files, "path": f"{path}/"}
            if self._ocdbt
            else {**files, "path": f"{self._directory / path}/"}
        )
        spec = {"driver": self._driver, "kvstore": kvstore, "fill_missing_data_reads": False}
        try:
            store = ts.open(spec, open=True, read=True).result()
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self._directory}: parameter {path} is missing or damaged ({_short(error)})"
            ) from error
        if tuple(store.shape) != tuple(shape):
            raise UserError(
                f"{self._directory}: {path} has shape {list(store.shape)}, the config asks for {list(shape)}"
            )
        return store


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Orbax warns about files that a checkpoint without OCDBT does not have."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
