"""Blocks of arrays on the host: indices, and casts that stay quick for bfloat16."""

from collections.abc import Iterator

import numpy as np

Index = tuple[slice, ...]

_BITS = {2: np.uint16, 4: np.uint32}
_BLOCK_BYTES = 32 * 2**20


def everything(shape: tuple[int, ...]) -> Index:
    return tuple(slice(0, size) for size in shape)


def bounds(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each axis: hashable, unlike slices."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def block_shape(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in bounds(index, shape))


def chunk_shape(shape: tuple[int, ...], itemsize: int, stacked: bool) -> tuple[int, ...]:
    """How a parameter lies on disk: layers apart, and leading axes cut until a chunk is about 32 MiB."""
    chunk = [1, *shape[1:]] if stacked else list(shape)
    axis = int(stacked)
    row_bytes = itemsize * int(np.prod(chunk[axis + 1 :], dtype=np.int64))
    chunk[axis] = max(1, min(chunk[axis], _BLOCK_BYTES // row_bytes))
    return tuple(chunk)


def write_order(shape: tuple[int, ...], itemsize: int, stacked: bool) -> Iterator[Index]:
    """Blocks that cover an array, each made of whole chunks: a layer, or some rows."""
    rows = 1 if stacked else chunk_shape(shape, itemsize, stacked)[0]
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])), *everything(shape[1:]))


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`; equal dtypes move as integers, which numpy copies many times faster."""
    if target.dtype == source.dtype:
        bits = _BITS[target.dtype.itemsize]
        target, source = target.view(bits), source.view(bits)
    with np.errstate(over="ignore"):  # whoever narrows to float16 looks for infinities itself
        target[...] = source
