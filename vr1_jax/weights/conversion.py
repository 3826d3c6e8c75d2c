"""Both directions of conversion, a block at a time: no more than one layer of one parameter is in memory."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vr1_jax.errors import UserError
from vr1_jax.files import check_output_directory, check_space, whole_directory, write_json
from vr1_jax.models.config import flatten_hf_config
from vr1_jax.models.families import abstract_model, family_of
from vr1_jax.models.mapping import Rule, parameter_shapes
from vr1_jax.progress import Progress
from vr1_jax.weights import blocks
from vr1_jax.weights.array_store import ParameterWriter
from vr1_jax.weights.checkpoint_dir import (
    ASSETS,
    HF,
    META,
    PARAMS,
    STEPS,
    copy_assets,
    find_checkpoint,
    step_directory,
    write_meta,
)
from vr1_jax.weights.hf_directory import DTYPES, HFDirectory, ShardWriter
from vr1_jax.weights.loading import Source, open_source

_DTYPE_OF = {"bfloat16": DTYPES["BF16"], "float16": DTYPES["F16"], "float32": DTYPES["F32"]}


def hf_to_flax(hf: Path, out: Path, *, dtype: str | None = None, force: bool = False) -> None:
    """Convert a Hugging Face directory; without a dtype, the narrowest that keeps every bit."""
    source = HFDirectory(hf)
    target = _DTYPE_OF[dtype] if dtype else _lossless(source.dtypes)
    shapes = parameter_shapes(abstract_model(source.config))
    total = sum(map(math.prod, shapes.values())) * target.itemsize
    check_output_directory(out, source=hf, force=force, replaceable=_is_converted_model)
    check_space(out, total)
    with (
        whole_directory(out) as directory,
        Progress("converting", total, "B") as progress,
    ):
        writer = ParameterWriter(step_directory(directory, 0), shapes, target)
        for rule in family_of(source.config).rules(source.config):
            store = writer.create(rule.path, rule.stacked)
            for index in blocks.write_order(shapes[rule.path], target.itemsize, rule.stacked):
                block = source.read(rule.path, index, target)
                store[index].write(block).result()
                progress.advance(block.nbytes)
        copy_assets(hf, directory / HF)
        write_meta(directory, source=hf.resolve().name, dtype=target.name)


def flax_to_hf(
    checkpoint: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    force: bool = False,
) -> None:
    """Export a checkpoint; without a dtype, that of the model it started from (its config's torch_dtype)."""
    found = find_checkpoint(checkpoint, step)
    shapes = parameter_shapes(abstract_model(found.config))
    family, hf_config = family_of(found.config), flatten_hf_config(found.hf_config)
    name = dtype or hf_config.get("torch_dtype") or "float32"
    if name not in [*_DTYPE_OF]:  # a list: a broken file may hold what has no hash
        raise UserError(
            f"{found.assets / 'config.json'}: torch_dtype {name!r} is not one of {', '.join(_DTYPE_OF)}"
        )
    target = _DTYPE_OF[name]
    source, _ = open_source(checkpoint, found.step)
    published = {
        key: rule.published_shape(rule.layer_shape(shapes[rule.path]))
        for rule in family.rules(found.config)
        for key in rule.keys(shapes[rule.path])
    }
    total = sum(map(math.prod, published.values())) * target.itemsize
    check_output_directory(out, source=checkpoint, force=force, replaceable=_is_exported_model)
    check_space(out, total)
    with (
        whole_directory(out) as directory,
        Progress("exporting", total, "B") as progress,
    ):
        in_order = {key: published[key] for key in sorted(published, key=_natural)}
        writer = ShardWriter(directory, in_order, target, max_shard_bytes)
        for rule in family.rules(found.config):
            for key, array in _layers(source, rule, shapes[rule.path], target):
                _refuse_overflow(key, array)
                tensor = rule.to_published(array)
                writer.write(key, tensor)
                progress.advance(tensor.nbytes)
        copy_assets(found.assets, directory)
        architectures = hf_config.get("architectures") or [family.ARCHITECTURE]
        write_json(directory / "config.json", hf_config | {"architectures": architectures, "torch_dtype": name})


def _layers(
    source: Source, rule: Rule, shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    if not rule.stacked:
        yield rule.key, source.read(rule.path, blocks.everything(shape), dtype)
        return
    for layer, key in enumerate(rule.keys(shape)):
        index = (slice(layer, layer + 1), *blocks.everything(shape[1:]))
        yield key, source.read(rule.path, index, dtype)[0]


def _refuse_overflow(key: str, array: np.ndarray) -> None:
    """Only float16 is too narrow for a trained weight; infinities would surface much later, as NaN."""
    if array.dtype == np.float16 and not np.isfinite(array).all():
        raise UserError(f"{key}: values do not fit float16; export as bfloat16 or float32")


def _lossless(dtypes: set[np.dtype]) -> np.dtype:
    return DTYPES["BF16"] if dtypes == {DTYPES["BF16"]} else DTYPES["F32"]


def _is_converted_model(path: Path) -> bool:
    """Written by `hf_to_flax`; a training run has other steps and other files, and is never replaced."""
    names = {entry.name for entry in path.iterdir()}
    entries = list(path.glob(f"{STEPS}/*/*/"))
    return names <= {META, HF, STEPS} and all(
        entry.relative_to(path / STEPS).parts == ("0", PARAMS) for entry in entries
    )


def _is_exported_model(path: Path) -> bool:
    weights = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    return all(entry.name in ASSETS or weights.fullmatch(entry.name) for entry in path.iterdir())


def _natural(key: str) -> list[tuple[int, str]]:
    """layers.2 before layers.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in key.split(".")]
