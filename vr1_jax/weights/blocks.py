"""Blocks of arrays on the host: indices, and casts that stay quick for bfloat16."""

import math
from collections.abc import Iterator

import numpy as np

Index = tuple[slice, ...]

_BITS = {2: np.uint16, 4: np.uint32}
_FILE_BYTES = 32 * 2**20
_PART_BYTES = 4 * 2**20
_CACHED = 2**17  # values


def everything(shape: tuple[int, ...]) -> Index:
    return tuple(slice(0, size) for size in shape)


def bounds(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each axis: hashable, unlike slices."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def block_shape(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in bounds(index, shape))


def chunk_shapes(shape: tuple[int, ...], itemsize: int, stacked: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How a parameter lies on disk: what one file holds, and the parts of it that can be read alone.

    A file holds one layer, or rows of about 32 MiB; a part holds rows of at most 4 MiB, so that each device
    of a mesh decodes little more than its own.
    """
    axis = int(stacked)
    row_bytes = itemsize * math.prod(shape[axis + 1 :])
    most = max(1, _PART_BYTES // row_bytes)
    part = next(rows for rows in range(min(most, shape[axis]), 0, -1) if shape[axis] % rows == 0)
    rows = shape[axis] if stacked else part * max(1, min(_FILE_BYTES // (part * row_bytes), shape[axis] // part))
    leading, trailing = shape[:axis], shape[axis + 1 :]
    ones = (1,) * len(leading)
    return (*ones, rows, *trailing), (*ones, part, *trailing)


def write_order(shape: tuple[int, ...], itemsize: int, stacked: bool) -> Iterator[Index]:
    """Blocks that cover an array, each the content of one file: a layer, or some rows."""
    rows = chunk_shapes(shape, itemsize, stacked)[0][0]
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])), *everything(shape[1:]))


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`; equal dtypes move as integers, which numpy copies many times faster."""
    if target.dtype == source.dtype:
        bits = _BITS[target.dtype.itemsize]
        target, source = target.view(bits), source.view(bits)
    with np.errstate(over="ignore"):  # whoever narrows to float16 looks for infinities itself
        target[...] = source


def is_finite(block: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, in pieces that stay in the processor's cache."""
    bits = _BITS[block.dtype.itemsize]
    infinity = np.array(np.inf, block.dtype).view(bits) << 1  # without the sign; NaNs are larger
    flat = block.reshape(-1).view(bits)
    return all(((flat[i : i + _CACHED] << 1) < infinity).all() for i in range(0, flat.size, _CACHED))
