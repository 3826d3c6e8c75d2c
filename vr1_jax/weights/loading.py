"""Any model directory, straight into device memory."""

from os import PathLike
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from vr1_jax.errors import UserError
from vr1_jax.files import read_json
from vr1_jax.models.base import Model
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.families import abstract_model
from vr1_jax.models.mapping import parameter_shapes
from vr1_jax.sharding import TRAIN_RULES, Rules, shardings
from vr1_jax.weights import blocks
from vr1_jax.weights.adapters import MergedParameters, lora_of
from vr1_jax.weights.array_store import StoredParameters
from vr1_jax.weights.checkpoint_dir import HF, META, STEPS, find_checkpoint, is_checkpoint
from vr1_jax.weights.hf_directory import HFDirectory

# Weights that can be read in blocks, under our parameter names.
Source = HFDirectory | StoredParameters | MergedParameters


def load_model(
    path: str | PathLike[str],
    *,
    dtype: np.dtype | type | str = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = TRAIN_RULES,
    step: int | None = None,
) -> tuple[Model, ModelConfig]:
    """The model of a Hugging Face, converted or run directory (latest step, or `step`), and its config.

    Each device receives its part as it is read, so the host never holds more than one part of one parameter.
    The default dtype is that of a trainer's master weights; scoring and sampling want bfloat16. Without a
    mesh everything lies on the first device.
    """
    source, config = open_source(Path(path), step)
    return place(source, abstract_model(config, np.dtype(dtype)), mesh, rules), config


def open_source(path: Path, step: int | None = None) -> tuple[Source, ModelConfig]:
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    if is_checkpoint(path):
        checkpoint = find_checkpoint(path, step)
        if found := lora_of(path):
            lora, base = found
            if not base.is_dir():
                raise UserError(f"{path}: adapts {base}, which is gone; put it back")
            origin = read_json(path / META)["origin"]["step"]
            return MergedParameters(open_source(base, origin)[0], checkpoint, lora), checkpoint.config
        shapes = parameter_shapes(abstract_model(checkpoint.config))
        return StoredParameters(checkpoint.directory, shapes), checkpoint.config
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path}: neither a Hugging Face model (config.json) nor a checkpoint ({HF}/ and {STEPS}/)"
        )
    if step is not None:
        raise UserError(f"{path}: a Hugging Face directory has no steps")
    source = HFDirectory(path)
    return source, source.config


def place(source: Source, model: Model, mesh: Mesh | None, rules: Rules) -> Model:
    """Fill an abstract model; shapes and dtypes are the model's, placement follows its declared axes."""
    leaves = jax.tree.leaves(model)
    if mesh is None:
        placements = [SingleDeviceSharding(jax.local_devices()[0])] * len(leaves)
    else:
        placements = jax.tree.leaves(shardings(model, rules, mesh))
    names = parameter_shapes(model)
    arrays = [_place(source, *each) for each in zip(names, leaves, placements, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(model), arrays)


def _place(source: Source, name: str, leaf: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    """Read each distinct block once, also where several devices hold it (`make_array_from_callback` would not)."""
    devices_of: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        devices_of.setdefault(blocks.bounds(index, leaf.shape), []).append(device)
    shards = []
    for block, devices in devices_of.items():
        values = source.read(name, tuple(slice(*ends) for ends in block), np.dtype(leaf.dtype))
        shards += [jax.device_put(values, device) for device in devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)
