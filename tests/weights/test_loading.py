"""load_model from every kind of directory, onto one device and onto meshes of eight."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from published_models import tensors_of
from safetensors.numpy import save_file

import vr1_jax
from vr1_jax import sharding
from vr1_jax.errors import UsageError, UserError
from vr1_jax.models import mapping
from vr1_jax.models.families import abstract_model
from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.weights import array_store, blocks, checkpoint_dir, loading
from vr1_jax.weights.conversion import hf_to_flax
from vr1_jax.weights.hf_directory import HFDirectory

MESHES = [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(scope="session")
def converted(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    hf_to_flax(published(), out)
    return out


def equal(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_arrives(published, tied):
    model, config = vr1_jax.load_model(published(tied, "float32"))
    assert (model.text.head is None) == config.text.tied == tied
    arrays, tensors = mapping.parameters(model), tensors_of(published(tied, "float32"))
    for rule in Qwen25VL.rules(config):
        layers = arrays[rule.path] if rule.stacked else arrays[rule.path][None]
        for key, layer in zip(rule.keys(layers.shape), layers, strict=True):
            np.testing.assert_array_equal(rule.to_published(np.asarray(layer)), tensors.pop(key), err_msg=key)
    assert not tensors


def test_default_is_float32_on_one_device(published):
    model, _ = vr1_jax.load_model(str(published()))
    leaves = jax.tree.leaves(model)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert {device for leaf in leaves for device in leaf.devices()} == {jax.devices()[0]}


@pytest.mark.parametrize("kind", ["hf", "converted"])
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_mesh_holds_the_same_weights(published, converted, axes, kind):
    path = published() if kind == "hf" else converted
    mesh = sharding.make_mesh(**axes)
    single, _ = vr1_jax.load_model(path, dtype=jnp.bfloat16)
    model, config = vr1_jax.load_model(path, dtype=jnp.bfloat16, mesh=mesh)
    assert equal(model, single)
    wanted = sharding.shardings(abstract_model(config), sharding.TRAIN_RULES, mesh)
    assert [leaf.sharding for leaf in jax.tree.leaves(model)] == jax.tree.leaves(wanted)


def test_other_rules_place_otherwise(published):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    model, _ = vr1_jax.load_model(published(), mesh=mesh, rules=sharding.ROLLOUT_RULES)
    query = model.text.layers.query[...]
    assert query.sharding.shard_shape(query.shape) == (3, 64, 4, 8)  # heads over tensor, width whole


def test_heads_that_do_not_divide_are_refused(published):
    with pytest.raises(UsageError, match="4 kv heads"):
        vr1_jax.load_model(published(), mesh=sharding.make_mesh(fsdp=1, tensor=8))


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_each_value_is_read_once(published, axes):
    class Counted(HFDirectory):
        def read(self, path, index, dtype):
            block = super().read(path, index, dtype)
            total[path] = total.get(path, 0) + block.size
            largest[path] = max(largest.get(path, 0), block.size)
            return block

    total, largest = {}, {}
    source, mesh = Counted(published()), sharding.make_mesh(**axes)
    abstract = abstract_model(source.config)
    loading.place(source, abstract, mesh, sharding.TRAIN_RULES)
    shapes = mapping.parameter_shapes(abstract)
    assert total == {path: np.prod(shape) for path, shape in shapes.items()}
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert largest["text.layers.gate"] * split == np.prod(shapes["text.layers.gate"])


def test_swapped_layers_are_noticed(published, altered):
    a, b = (f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 2))
    swapped = altered(lambda tensors: tensors | {a: tensors[b], b: tensors[a]})
    assert not equal(vr1_jax.load_model(swapped)[0], vr1_jax.load_model(published())[0])


def test_orbax_itself_restores_a_converted_model(published, converted):
    model, config = vr1_jax.load_model(published(), mesh=(mesh := sharding.make_mesh(fsdp=4, tensor=2)))
    placement = sharding.shardings(abstract_model(config), sharding.TRAIN_RULES, mesh)
    abstract = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract_model(config), placement
    )
    step = checkpoint_dir.find_checkpoint(converted).directory
    restored = ocp.load(step, mapping.to_tree(abstract), checkpointable_name=checkpoint_dir.PARAMS)
    assert equal(mapping.from_tree(restored, abstract), model)


@pytest.fixture
def run(published, converted, tmp_path):
    """A run directory as a trainer would write it: steps 5 and 10, saved by Orbax from a mesh."""
    root = tmp_path / "run"
    checkpoint_dir.copy_assets(checkpoint_dir.assets_directory(converted), root / checkpoint_dir.HF)
    model, _ = vr1_jax.load_model(published(), mesh=sharding.make_mesh(fsdp=4, tensor=2))

    def save(step: int, context: ocp.Context):
        params = mapping.to_tree(jax.tree.map(lambda x: x * step, model))
        state = {checkpoint_dir.PARAMS: params, "optimizer": {"count": np.array(step)}}
        with context:
            ocp.save_checkpointables(checkpoint_dir.step_directory(root, step), state)
        return params

    return root, save


@pytest.mark.parametrize("context", [ocp.Context, array_store.save_context], ids=["orbax", "ours"])
def test_a_run_directory_from_another_mesh(published, run, context):
    root, save = run
    save(5, context())
    save(10, context())
    (checkpoint_dir.step_directory(root, 15).with_suffix(".orbax-checkpoint-tmp") / "params").mkdir(parents=True)
    original, _ = vr1_jax.load_model(published())
    times = lambda factor: jax.tree.map(lambda x: x * factor, original)  # noqa: E731
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    assert equal(vr1_jax.load_model(root, mesh=mesh)[0], times(10))
    assert equal(vr1_jax.load_model(root, step=5)[0], times(5))
    # Layer by layer, as export reads.
    checkpoint = checkpoint_dir.find_checkpoint(root)
    shapes = mapping.parameter_shapes(original)
    source = array_store.StoredParameters(checkpoint.directory, shapes)
    up = "text.layers.up"
    for layer in range(3):
        block = source.read(up, (slice(layer, layer + 1), *blocks.everything(shapes[up][1:])), np.dtype("float32"))
        np.testing.assert_array_equal(block[0], original.text.layers.up[layer] * 10)
    with pytest.raises(UserError, match="no step 7; there are 5, 10"):
        vr1_jax.load_model(root, step=7)


def test_our_options_keep_layers_apart_on_disk(run, published):
    root, save = run
    save(1, array_store.save_context())
    shapes = mapping.parameter_shapes(vr1_jax.load_model(published())[0])
    source = array_store.StoredParameters(checkpoint_dir.step_directory(root, 1), shapes)
    for path, store in source._stores.items():
        assert (store.chunk_layout.read_chunk.shape[0] == 1) == (".layers." in path), path


def test_damage_is_noticed(converted, tmp_path):
    def damaged(change):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(converted, tmp_path / "model")
        change(tmp_path / "model")
        with pytest.raises(UserError) as caught:
            vr1_jax.load_model(tmp_path / "model")
        return str(caught.value)

    params = "checkpoints/0/params"
    assert "text.layers.up" in damaged(lambda root: shutil.rmtree(root / params / "text.layers.up"))
    assert "text.layers.up" in damaged(lambda root: shutil.rmtree(root / params / "text.layers.up/c/1"))
    assert "text.norm" in damaged(lambda root: (root / params / "text.norm/c/0").write_bytes(b"short"))
    assert "format 99" in damaged(lambda root: (root / "meta.json").write_text('{"format": 99}'))
    steps = checkpoint_dir.STEPS
    assert "no finished checkpoint" in damaged(lambda root: (root / steps / "0").rename(root / steps / "tmp"))
    assert "config.json" in damaged(lambda root: (root / "hf/config.json").unlink())


def test_paths_that_are_no_model(tmp_path, published):
    with pytest.raises(UserError, match="no such directory"):
        vr1_jax.load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="neither a Hugging Face model"):
        vr1_jax.load_model(tmp_path)
    with pytest.raises(UserError, match="no steps"):
        vr1_jax.load_model(published(), step=3)


def test_half_precision_sources(altered):
    directory = altered(lambda tensors: {key: x.astype(np.float16) for key, x in tensors.items()})
    model, _ = vr1_jax.load_model(directory)
    up = tensors_of(directory)["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(model.text.layers.up[1], up.T.astype(np.float32))
    mixed = tensors_of(directory)
    mixed["model.norm.weight"] = mixed["model.norm.weight"].astype(np.float32)
    save_file(mixed, directory / "model.safetensors")
    assert equal(vr1_jax.load_model(directory)[0], model)
