"""On eight simulated devices, every mesh computes what one device computes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from reference_model import batch, hf_config, mixed_cases

from vr1_jax.errors import UsageError
from vr1_jax.models import base, families
from vr1_jax.models.families import parse_hf_config
from vr1_jax.sharding import (
    ROLLOUT_RULES,
    TRAIN_RULES,
    abstract,
    batch_sharding,
    make_mesh,
    reshard,
    shard,
    shardings,
)
from vr1_jax.types import blank_prompt

MESHES = {"8x1": (1, 8, 1), "4x2": (1, 4, 2), "2x4": (1, 2, 4), "2x2x2": (2, 2, 2)}


@jax.jit
def loss_and_grads(model, prompt, tokens):
    def loss(model):
        logits = base.logits(model, base.forward_completions(model, prompt, tokens)[1])
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        return -logps.mean()

    return jax.value_and_grad(loss)(model)


@pytest.fixture(scope="module")
def inputs():
    cases = [*mixed_cases(0), *mixed_cases(1)[:3]]
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 280, (8, 2, 6)))
    return batch(cases), tokens


@pytest.fixture(scope="module")
def model():
    return families.build(parse_hf_config(hf_config(tied=False)), jax.random.key(0))


@pytest.fixture(scope="module")
def expected(model, inputs):
    return loss_and_grads(model, *inputs)


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES.keys())
def test_loss_and_gradients_equal_one_device(model, inputs, expected, shape):
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        sharded = reshard(model, TRAIN_RULES, mesh)
        prompt, tokens = jax.device_put(inputs, batch_sharding(mesh))
        loss, grads = loss_and_grads(sharded, prompt, tokens)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    for ours, one in zip(jax.tree.leaves(grads), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-5 * float(jnp.abs(one).max()))
    query = sharded.text.layers.query[...]
    assert query.addressable_shards[0].data.size * shape[1] * shape[2] == query.size


def test_activations_are_constrained_on_cpu_too():
    """A constraint that was dropped here would make the tests above meaningless."""
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: shard(x * 2, "batch", None, "heads"))(jnp.ones((8, 3, 4)))
    assert x.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor")), 3)
    assert shard(x, "batch", None, None) is x  # no mesh, no constraint


def test_weights_are_gathered_not_activations(model, inputs):
    """Under fsdp each layer gathers weights: no all-gather may produce the whole batch's activations."""
    mesh = make_mesh(1, 8, 1)
    prompt, tokens = inputs
    with jax.set_mesh(mesh):
        weights = abstract(model, TRAIN_RULES, mesh)
        on_batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), (prompt, tokens)
        )
        text = loss_and_grads.lower(weights, *on_batch).compile().as_text()
    gathered = [line.split(" = ")[1].split("{")[0] for line in text.splitlines() if "all-gather(" in line]
    assert gathered  # fsdp does gather
    length = prompt.tokens.shape[1] + tokens[0].size
    assert [shape for shape in gathered if f"[8,{length}," in shape or "[8,3,136," in shape] == []


def test_rollout_layout_is_whole_or_split_over_tensor_only(model):
    mesh = make_mesh(1, 4, 2)
    rollout = reshard(reshard(model, TRAIN_RULES, mesh), ROLLOUT_RULES, mesh)
    assert rollout.text.norm[...].is_fully_replicated
    assert rollout.text.layers.query[...].sharding.spec == PartitionSpec(None, None, "tensor", None)


def test_heads_that_do_not_divide_are_refused_by_number(model):
    with pytest.raises(UsageError, match=r"key.*4 kv heads cannot be split over 8 devices.*divides 4"):
        shardings(model, TRAIN_RULES, make_mesh(1, 1, 8))


def test_other_axes_that_do_not_divide_are_kept_whole(model):
    mesh = make_mesh(1, 3, 1, devices=jax.devices()[:3])
    where = shardings(model, TRAIN_RULES, mesh).text.layers.gate.get_value()
    assert where.spec == PartitionSpec(None, None, "tensor")


@pytest.mark.parametrize("shape", [(1, -1, 3), (2, 2, 1), (-1, -1, 1), (1, 8, 0)])
def test_meshes_that_do_not_fit_are_refused(shape):
    with pytest.raises(UsageError, match="mesh"):
        make_mesh(*shape)


def published_7b() -> dict:
    """Shapes of the published 7B checkpoint."""
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    }  # fmt: skip
    text = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    return {"model_type": "qwen2_5_vl", **text, "vision_config": vision}


def test_published_7b_shapes(shared_data):
    published = json.loads((shared_data / "hf/Qwen2.5-VL-7B-Instruct/config.json").read_text())
    assert parse_hf_config(published) == parse_hf_config(published_7b())


def test_7b_forward_compiles_for_eight_devices_without_weights():
    """16 frames at upstream's training size. Layers are scanned, so compile time does not grow with depth."""
    mesh = make_mesh(1, 4, 2)
    config = parse_hf_config(published_7b())
    with jax.set_mesh(mesh):
        model = abstract(families.abstract_model(config, jnp.bfloat16), TRAIN_RULES, mesh)
        shape = jax.eval_shape(lambda: blank_prompt(8, slices=8, patches=512, tokens=1280))
        prompt = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), shape
        )
        compiled = jax.jit(base.forward).lower(model, prompt).compile()
    memory = compiled.memory_analysis()
    used = sum(x.size for x in jax.tree.leaves((model.vision, model.text.embed, model.text.layers))) * 2
    assert used / 8 <= memory.argument_size_in_bytes < used / 7  # split over all eight, and little else
