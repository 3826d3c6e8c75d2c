"""How a parameter of ours corresponds to a published tensor: its name and its axes. Read both ways.

A rule's axes are letters: ours on the left, the published tensor's on the right, where letters written
together are one flattened axis. `DNH -> NH D` says that a published matrix [heads * head width, width] is our
[width, heads, head width]. Names with `{}` exist once a layer; ours are stacked along a leading axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx


@dataclass(frozen=True)
class Rule:
    path: str  # of our parameter, dotted
    key: str  # published name
    axes: str

    @property
    def stacked(self) -> bool:
        return "{}" in self.key

    @property
    def ours(self) -> str:
        return self.axes.split(" -> ")[0]

    @property
    def theirs(self) -> list[str]:
        return self.axes.split(" -> ")[1].split()

    def published_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the published tensor, from the shape of ours without its layer axis."""
        sizes = dict(zip(self.ours, shape, strict=True))
        return tuple(math.prod(sizes[letter] for letter in word) for word in self.theirs)

    def from_published(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Ours, a view where possible; `shape` is ours without the layer axis."""
        sizes, order = dict(zip(self.ours, shape, strict=True)), "".join(self.theirs)
        split = tensor.reshape([sizes[letter] for letter in order])
        return split.transpose([order.index(letter) for letter in self.ours])

    def published_runs(self, shape: tuple[int, ...], index: tuple[slice, ...]) -> list[list[slice]]:
        """For every published axis, the contiguous runs that together hold our block `index`.

        A block of heads is one run of a q_proj, but three of the vision tower's fused qkv.
        """
        axes = dict(zip(self.ours, zip(shape, index, strict=True), strict=True))
        return [_runs([axes[letter] for letter in word]) for word in self.theirs]

    def to_published(self, array: np.ndarray) -> np.ndarray:
        order = "".join(self.theirs)
        turned = array.transpose([self.ours.index(letter) for letter in order])
        return np.ascontiguousarray(turned).reshape(self.published_shape(array.shape))

    def keys(self, shape: tuple[int, ...]) -> list[str]:
        """Published names of all layers, from the shape of ours with its layer axis."""
        return [self.key.format(layer) for layer in range(shape[0])] if self.stacked else [self.key]

    def layer_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[1:] if self.stacked else shape


def _runs(axes: Sequence[tuple[int, slice]]) -> list[slice]:
    """The runs of a flattened axis, from the (size, part) of the axes in it, outermost first."""
    runs = [slice(0, 1)]
    for size, part in axes:
        start, stop, _ = part.indices(size)
        if (start, stop) == (0, size):
            runs = [slice(run.start * size, run.stop * size) for run in runs]
        else:
            rows = [row for run in runs for row in range(run.start, run.stop)]
            runs = [slice(row * size + start, row * size + stop) for row in rows]
    return runs


# Parameters by name, and as the nested dict that checkpoints keep: plain names outlive flax versions.


def parameter_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {path: array.shape for path, array in parameters(model).items()}


def parameters(model: nnx.Module) -> dict[str, Any]:
    """Dotted name -> array (or shape, or sharding), in the order of the model's leaves."""
    nodes = jax.tree.leaves_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return {jax.tree_util.keystr(path, simple=True, separator="."): node.get_value() for path, node in nodes}


def to_tree(model: nnx.Module) -> dict[str, Any]:
    """text.layers.query -> {"text": {"layers": {"query": array}}}."""
    return nest(parameters(model))


def nest(named: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in named.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def from_tree(tree: dict[str, Any], like: nnx.Module) -> nnx.Module:
    """A model like `like` (abstract or not) with the arrays of `tree`."""
    leaves = []
    for path in parameters(like):
        node = tree
        for name in path.split("."):
            node = node[name]
        leaves.append(node)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
