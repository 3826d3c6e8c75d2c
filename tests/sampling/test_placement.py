"""Sampling on eight simulated devices: the same answers, and weights that stay where they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from reference_model import batch, mixed_cases

from vr1_jax.data.collate import Bucket
from vr1_jax.models.base import unstack
from vr1_jax.sampling.generate import Limits, Plan, generate, row_keys
from vr1_jax.sampling.sampler import rollout_params
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.sharding import ROLLOUT_RULES, TRAIN_RULES, abstract, batch_sharding, make_mesh, reshard

PLAN = Plan(groups=(2, 1), capacity=12, stop_tokens=tuple(range(0, 300, 10)), pad_token=299)


@pytest.fixture(scope="module")
def inputs():
    cases = [*mixed_cases(0), *mixed_cases(1)[:3]]
    prompt, backwards = batch(cases, bucket=Bucket(3, 136, 70)), batch(cases[::-1], bucket=Bucket(3, 136, 70))
    ids = jnp.arange(24).reshape(8, 3)
    return (prompt, backwards), jnp.ones((8, 3), bool), row_keys(jax.random.key(0), 0, ids)


LIMITS = Limits.of(SamplingConfig(max_new_tokens=12))


@pytest.mark.parametrize("rollout_shape", [(1, 4, 2), (1, 2, 4)], ids=["4x2", "2x4"])
def test_answers_do_not_depend_on_devices(untied, inputs, rollout_shape):
    """Trained on one mesh, sampled on another of the same devices."""
    _, model = untied
    expected = generate(model, *inputs, LIMITS, PLAN)
    trained = reshard(model, TRAIN_RULES, make_mesh(1, 4, 2))
    mesh = make_mesh(*rollout_shape)
    with jax.set_mesh(mesh):
        placed = rollout_params(trained, mesh, jnp.float32)
        got = generate(placed, *jax.device_put(inputs, batch_sharding(mesh)), LIMITS, PLAN)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_allclose(got.logps, expected.logps, atol=1e-4)


def gathered(model, inputs, rules):
    """Shapes of all floats that the compiled sampler gathers, in its loops and before them."""
    mesh = make_mesh(1, 4, 2)
    on_batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), inputs
    )
    with jax.set_mesh(mesh):
        text = generate.lower(abstract(model, rules, mesh), *on_batch, LIMITS, PLAN).compile().as_text()
    assert "all-reduce(" in text
    return {shape for kind, shape in re.findall(r"(f32|bf16)\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)}


def test_sampling_gathers_scores_and_never_weights(untied, inputs):
    """[2, 3, 300]: scores of the three rows of this device's two prompts, over the two parts of the vocabulary."""
    _, model = untied
    assert gathered(model, inputs, ROLLOUT_RULES) == {"2,3,300"}
    trained = gathered(model, inputs, TRAIN_RULES)
    assert {"64,4,8", "300,64", "64,48"} & trained  # what the test would see


def test_weights_are_cast_before_they_travel(untied):
    _, model = untied
    trained = reshard(model, TRAIN_RULES, make_mesh(1, 4, 2))
    mesh = make_mesh(1, 2, 4)
    placed = rollout_params(trained, mesh)
    query = placed.text.layers[0].query[...]
    assert query.dtype == jnp.bfloat16
    assert query.sharding.mesh == mesh
    assert query.sharding.spec == PartitionSpec(None, "tensor", None)
    assert placed.text.norm[...].is_fully_replicated
    for ours, theirs in zip(jax.tree.leaves(placed), jax.tree.leaves(unstack(model)), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16))
