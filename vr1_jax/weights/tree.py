"""Parameters by name, and as the nested dict that checkpoints keep: plain names outlive flax versions."""

from typing import Any

import jax
from flax import nnx


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
