"""Where every array lives: one device mesh, and tables from logical axes to mesh axes.

The mesh has three axes. `data` only splits the batch; `fsdp` splits the batch *and* the parameters, which
are gathered layer by layer; `tensor` splits heads, mlp and vocabulary inside a layer. A parameter names its
logical axes once, where it is declared; moving to another strategy means using another table.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vr1_jax.errors import UsageError

Rules = Mapping[str, str | None]

# Parameters during training: every matrix is split twice, so that weights, gradients and Adam moments of a
# 7B model (16 bytes a parameter) fit into eight 80 GB devices.
TRAIN_RULES: Rules = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}

# Parameters during rollout: whole on each device, or split over `tensor` only. Decoding under fsdp would
# gather all weights for every token.
ROLLOUT_RULES: Rules = {**TRAIN_RULES, "embed": None}

# Activations, always: the batch over both data axes, the inside of a layer over `tensor`.
_ACTIVATION_AXES = {
    "batch": ("data", "fsdp"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}

# Axes that cannot fall back to a whole copy: half a head is a different model.
_INDIVISIBLE = ("heads", "kv_heads")


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: list[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh; one axis may be -1: whatever is left."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UsageError(f"mesh {sizes}: only one axis may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and fixed > 0 and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise UsageError(f"mesh {sizes} does not fit {len(devices)} devices")
    # Auto: the compiler propagates shardings from the constraints in the model. jax's own default differs.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all data axes: prompts, completions, advantages."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation by logical axes, one for each leading dimension; free without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    names = [_ACTIVATION_AXES.get(axis) if axis else None for axis in axes]
    spec = [name if _divides(dim, name, mesh) else None for dim, name in zip(x.shape, names, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def shardings(tree: Any, rules: Rules, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of the same structure with a NamedSharding for each array.

    Works for a model, for its gradients and for optimizer state alike: Adam moments are modules too and keep
    their parameters' axes. Arrays that name no axes (step counters) are replicated.
    """
    nodes = jax.tree.leaves_with_path(tree, is_leaf=_is_param)
    nodes = [(path, node) for path, node in nodes if jax.tree.leaves(node)]  # a frozen parameter's moments: none
    leaves = [
        NamedSharding(
            mesh, _spec(jax.tree_util.keystr(path), node, rules, mesh) if _is_param(node) else PartitionSpec()
        )
        for path, node in nodes
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def abstract(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings only: to compile and to restore into."""
    where = shardings(tree, rules, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)


def constrain(tree: Any, rules: Rules) -> Any:
    """Keep a traced tree laid out by the rules, so that what a step returns fits its next call."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(
        lambda x, where: jax.lax.with_sharding_constraint(x, where.spec), tree, shardings(tree, rules, mesh)
    )


def reshard(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    return jax.device_put(tree, shardings(tree, rules, mesh))


def place_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Global arrays, split by rows, from the rows of this process; without a mesh on the first device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def local_rows(x: jax.Array) -> np.ndarray:
    """The rows of a batch-sharded array that this process holds, in order, each once."""
    by_start = {(shard.index[0].start or 0): shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(by_start[start]) for start in sorted(by_start)])


def _is_param(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _spec(name: str, param: nnx.Variable, rules: Rules, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    shape, axes = param.get_value().shape, param.get_metadata("axes")
    spec = []
    for dim, axis in zip(shape, axes, strict=True):
        mesh_axis = rules.get(axis) if axis and dim > 1 else None  # optimizers keep reduced axes with size 1
        if not _divides(dim, mesh_axis, mesh):
            if axis in _INDIVISIBLE:
                raise UsageError(
                    f"{name}: {dim} {axis.replace('_', ' ')} cannot be split over {mesh.shape[mesh_axis]} devices "
                    f"of mesh axis '{mesh_axis}'; choose a tensor size that divides {dim}"
                )
            mesh_axis = None  # any GPU count works: what does not divide is kept whole
        spec.append(mesh_axis)
    return PartitionSpec(*spec)


def _divides(dim: int, mesh_axis: str | tuple[str, ...] | None, mesh: Any) -> bool:
    names = (mesh_axis,) if isinstance(mesh_axis, str) else mesh_axis or ()
    return dim % math.prod(mesh.shape[name] for name in names) == 0
