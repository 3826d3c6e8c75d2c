import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from vr1_jax.models import qwen25vl
from vr1_jax.models.qwen25vl import Qwen25VL

RULES = {rule.path: rule for rule in qwen25vl._RULES}


@st.composite
def rule_shape_index(draw):
    rule = draw(st.sampled_from(qwen25vl._RULES))
    shape = tuple(draw(st.integers(1, 4)) for _ in rule.ours)
    index = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        index.append(slice(start, draw(st.integers(start + 1, size))))
    return rule, shape, tuple(index)


@given(rule_shape_index())
@settings(deadline=None, max_examples=100)
def test_runs_hold_exactly_the_block(case):
    rule, shape, index = case
    published = np.arange(np.prod(shape)).reshape(rule.published_shape(shape))
    wanted = rule.from_published(published, shape)[index]

    runs = rule.published_runs(shape, index)
    rows = [np.concatenate([np.arange(run.start, run.stop) for run in axis]) for axis in runs]
    block = published[np.ix_(*rows)]
    assert block.size == wanted.size
    np.testing.assert_array_equal(rule.from_published(block, wanted.shape), wanted)


@given(rule_shape_index())
@settings(deadline=None, max_examples=50)
def test_there_and_back(case):
    rule, shape, _ = case
    published = np.arange(np.prod(shape)).reshape(rule.published_shape(shape))
    np.testing.assert_array_equal(rule.to_published(rule.from_published(published, shape)), published)


def test_heads_are_one_run_of_a_query_and_three_of_fused_qkv():
    everything, two_heads = slice(0, 6), slice(2, 4)
    query = RULES["text.layers.query"].published_runs((6, 4, 5), (everything, two_heads, slice(0, 5)))
    assert query == [[slice(10, 20)], [slice(0, 6)]]
    qkv = RULES["vision.layers.qkv_bias"].published_runs((3, 4, 5), (slice(0, 3), two_heads, slice(0, 5)))
    assert qkv == [[slice(10, 20), slice(30, 40), slice(50, 60)]]


@pytest.mark.parametrize(
    ("spelled", "published"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_spellings(spelled, published):
    assert Qwen25VL.published_name(spelled) == published
