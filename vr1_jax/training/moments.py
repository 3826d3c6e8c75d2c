"""Adam's moments in less memory: as bytes, or the second one as the product of a row and a column.

                  bytes a parameter   what is lost
    float32               8           nothing
    int8                  2           a few percent of precision in each moment, without bias
    factored              0           the first moment; the second is that of the rows times that of the columns

Everything is stored in the shape of its parameter, reduced axes kept with size 1: so it is split over devices by
the parameter's own axes, and a checkpoint of it restores onto any mesh.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Of int8: codes are logarithms, a byte covering 16 powers of two below the largest value of its row, so that small
# values keep their relative precision: half a step is 2 % of the root of the second moment, 4 % of the first. What
# is smaller than the smallest code becomes that code in the second moment: such a parameter moves less than Adam
# would move it. The largest update that adversarial gradients got was 1.3 times Adam's.
_OCTAVES = 16
_CODES = {jnp.dtype("uint8"): 255, jnp.dtype("int8"): 127}

_MOST_LAYERS = 1000  # room for the numbers of an array's layers

# Of factored: smaller arrays are kept whole, and an update is scaled down to this root mean square (Adafactor).
_SMALL = 2**14
_LARGEST_UPDATE = 1.0


class Bytes(NamedTuple):
    codes: jax.Array  # 0 is zero; the sign is that of the value
    scale: jax.Array  # fp32, the largest value of each row


class Int8State(NamedTuple):
    count: jax.Array
    first: Any
    second: Any  # of the roots: a byte covers twice the powers of two


class FactoredState(NamedTuple):
    count: jax.Array
    rows: Any  # means over the columns; the whole moment of small arrays
    columns: Any  # means over the rows


def scale_by_int8_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with moments of one byte. Rounding is by chance: else a decay of 0.1 % a step would round to none."""

    def init(params):
        def zeros(dtype):
            return jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params), jax.tree.map(
                lambda p: jnp.zeros((*p.shape[:-1], 1), jnp.float32), params
            )

        return Int8State(jnp.zeros((), jnp.int32), Bytes(*zeros(jnp.int8)), Bytes(*zeros(jnp.uint8)))

    def update(gradients, state, params=None):
        del params
        count = state.count + 1
        nodes, structure = jax.tree.flatten_with_path(gradients)
        stored = [jax.tree.leaves(part) for part in (*state.first, *state.second)]

        def of_part(gradient, *old, number):
            """Of an array, or of one of its layers: what takes the place of each argument."""
            chances = (_chance(gradient.shape, count, number, of_second) for of_second in (0, 1))
            first = b1 * decode(Bytes(*old[:2])) + (1 - b1) * gradient
            root = jnp.sqrt(b2 * decode(Bytes(*old[2:])) ** 2 + (1 - b2) * gradient**2)
            scaled = first / (1 - b1**count) / (root / jnp.sqrt(1 - b2**count) + eps)
            return scaled, *encode(first, jnp.int8, next(chances)), *encode(root, jnp.uint8, next(chances))

        parts = []
        for number, ((path, gradient), *old) in enumerate(zip(nodes, *stored, strict=True)):
            arrays, first = (gradient, *old), number * _MOST_LAYERS
            stacked = _is_stacked(path)
            parts.append(_layer_by_layer(of_part, arrays, first) if stacked else of_part(*arrays, number=first))
        updates, *new = (jax.tree.unflatten(structure, leaves) for leaves in zip(*parts, strict=True))
        return updates, Int8State(count, Bytes(*new[:2]), Bytes(*new[2:]))

    return optax.GradientTransformation(init, update)


def _layer_by_layer(of_part, arrays: tuple[jax.Array, ...], number: int) -> tuple[jax.Array, ...]:
    """In place: whole, decoded moments and updates would need more room than Adam's moments do."""

    def body(layer, arrays):
        new = of_part(*(x[layer] for x in arrays), number=number + layer)
        return tuple(x.at[layer].set(part) for x, part in zip(arrays, new, strict=True))

    return jax.lax.fori_loop(0, len(arrays[0]), body, arrays)


def encode(values: jax.Array, dtype: Any, chance: jax.Array) -> Bytes:
    """Each value as one of its two neighbours among the codes, by chance in 0..1, so that the mean is kept."""
    top = _CODES[jnp.dtype(dtype)]
    scale = jnp.abs(values).max(axis=-1, keepdims=True)
    share = jnp.abs(values) / jnp.where(scale > 0, scale, 1)
    below = jnp.clip(jnp.floor(top + jnp.log2(share) * (top / _OCTAVES)), 0, top - 1)
    low, high = _share(below, top), _share(below + 1, top)
    up = chance < (share - low) / (high - low)
    if jnp.issubdtype(dtype, jnp.unsignedinteger):
        # A second moment is never forgotten: as 0 it would leave the update bounded by eps alone. Rounded up, what
        # lies below the smallest code only makes the update smaller.
        up |= below == 0
    codes = jnp.sign(values) * (below + up)
    return Bytes(codes.astype(dtype), scale)


def _chance(shape: tuple[int, ...], count: jax.Array, number: jax.Array | int, stream: int) -> jax.Array:
    """Uniform in 0..1, of its own for each element, step and array, wherever the element lies.

    The finaliser of a hash does for rounding, and takes a tenth of the operations of jax.random.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    seed = _mix(_mix(count.astype(jnp.uint32)) ^ (2 * jnp.asarray(number, jnp.uint32) + jnp.uint32(stream)))
    return (_mix(index ^ seed) >> 8).astype(jnp.float32) / 2**24


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def decode(stored: Bytes) -> jax.Array:
    top = _CODES[stored.codes.dtype]
    codes = stored.codes.astype(jnp.float32)
    return jnp.sign(codes) * _share(jnp.abs(codes), top) * stored.scale


def _share(code: jax.Array, top: int) -> jax.Array:
    return jnp.where(code > 0, jnp.exp2((code - top) * (_OCTAVES / top)), 0.0)


def scale_by_factored_rms(b2: float, eps: float) -> optax.GradientTransformation:
    """Adafactor without its relative step size: no first moment, a second one of rank one for each matrix."""

    def init(params):
        def zeros(reduced):
            return jax.tree.map_with_path(lambda path, p: jnp.zeros(_shape(path, p, reduced), jnp.float32), params)

        return FactoredState(jnp.zeros((), jnp.int32), zeros(1), zeros(0))

    def update(gradients, state, params=None):
        del params
        count = state.count + 1

        def of_leaf(path, gradient, rows, columns):
            sides, square = _sides(path, gradient.shape), gradient**2
            if sides is None:
                rows = b2 * rows + (1 - b2) * square
                moment = rows
            else:
                rows = b2 * rows + (1 - b2) * square.mean(sides[1], keepdims=True)
                columns = b2 * columns + (1 - b2) * square.mean(sides[0], keepdims=True)
                moment = rows * columns / jnp.maximum(rows.mean(sides[0], keepdims=True), 1e-30)
            scaled = gradient / (jnp.sqrt(moment / (1 - b2**count)) + eps)
            one = range(_is_stacked(path), gradient.ndim)
            size = jnp.sqrt((scaled**2).mean(tuple(one), keepdims=True))
            return scaled / jnp.maximum(1.0, size / _LARGEST_UPDATE), rows, columns

        leaves = jax.tree.map_with_path(of_leaf, gradients, state.rows, state.columns)
        updates, rows, columns = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0, 0, 0)), leaves
        )
        return updates, FactoredState(count, rows, columns)

    return optax.GradientTransformation(init, update)


def _sides(path: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes that count as rows and those that count as columns: where both together are smallest."""
    axes = tuple(range(_is_stacked(path), len(shape)))
    sizes = [shape[axis] for axis in axes]
    if math.prod(sizes) < _SMALL or len(axes) < 2:
        return None
    cut = min(range(1, len(axes)), key=lambda n: math.prod(sizes[:n]) + math.prod(sizes[n:]))
    return axes[:cut], axes[cut:]


def _shape(path: tuple[Any, ...], parameter: jax.Array, reduced: int) -> tuple[int, ...]:
    """Of the statistic that `reduced` side has been averaged out of; an empty one where nothing is factored."""
    sides = _sides(path, parameter.shape)
    if sides is None:
        return parameter.shape if reduced == 1 else (1,) * parameter.ndim
    return tuple(1 if axis in sides[reduced] else size for axis, size in enumerate(parameter.shape))


def _is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether the first axis counts layers, each of which is a matrix of its own."""
    return ".layers." in jax.tree_util.keystr(path)
