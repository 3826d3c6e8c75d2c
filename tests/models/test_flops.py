"""The formulas against parameters that exist and against the compiler's own count."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from vr1_jax.config import OptimizerConfig
from vr1_jax.models import attention, base, families, flops
from vr1_jax.models.adapters import add_adapters
from vr1_jax.models.config import LoraConfig, ModelConfig, TextConfig, VisionConfig
from vr1_jax.models.flops import Workload
from vr1_jax.rl.logprobs import score_completions
from vr1_jax.training.optimizer import trained, with_frozen
from vr1_jax.types import PromptCache, blank_prompt

# Of the compiler's count, which also has norms, softmax, rotations and losses.
TOLERANCE = 0.05

# One layer each: the compiler counts the body of a loop once. Wide, so that matrix products are nearly all.
ONE_LAYER = ModelConfig(
    text=TextConfig(1, 512, 8, 2, 1024, 2048, (8, 12, 12), 1e6, 1e-6, tied=False),
    vision=VisionConfig(1, 320, 5, 640, 512, ()),
    image_token=0,
    video_token=1,
    vision_start_token=2,
    vision_end_token=3,
    model_type="qwen2_5_vl",
)
WORK = Workload(prompts=2, slices=2, patches=64, tokens=96, group=3, answer=40, shuffled_group=1)


def counted_by_xla(f, *arguments) -> float:
    return jax.jit(f).lower(*arguments).cost_analysis()["flops"]


@pytest.fixture(scope="module")
def model():
    return families.abstract_model(ONE_LAYER)


def abstract_prompt(work):
    return jax.eval_shape(
        lambda: blank_prompt(work.prompts, slices=work.slices, patches=work.patches, tokens=work.tokens)
    )


@pytest.fixture(scope="module")
def prompt():
    return abstract_prompt(WORK)


@pytest.fixture(scope="module")
def tokens():
    return jax.ShapeDtypeStruct((WORK.prompts, WORK.group, WORK.answer), jnp.int32)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(tied):
    text = TextConfig(3, 96, 6, 2, 160, 500, (2, 3, 3), 1e6, 1e-6, tied=tied)
    config = dataclasses.replace(ONE_LAYER, text=text, vision=VisionConfig(4, 64, 4, 80, 96, (1,)))
    counts = flops.count_parameters(config)
    model = families.abstract_model(config)

    def size(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    assert counts.vision == size(model.vision)
    assert counts.text == size((model.text.layers, model.text.norm))
    assert counts.embedding == size(model.text.embed)
    assert counts.head == size(model.text.head)
    assert counts.total == size(model)


@pytest.mark.parametrize("tokens", [WORK.tokens, 1408], ids=["one block", "many blocks"])
def test_reading_a_prompt(model, tokens):
    work = dataclasses.replace(WORK, tokens=tokens)
    expected = flops.see(ONE_LAYER.vision, work) + flops.prefill(ONE_LAYER, work)
    assert counted_by_xla(base.prefill, model, abstract_prompt(work)) == pytest.approx(expected, rel=TOLERANCE)


def test_a_token_in_every_row(model):
    slots = 64

    def step(model):
        config = model.config
        by_head, width = (WORK.prompts, config.text.kv_heads), config.text.head_dim
        keys, values = (jnp.zeros((*by_head, width, WORK.tokens)),), (jnp.zeros((*by_head, WORK.tokens, width)),)
        mask = jnp.ones((WORK.prompts, WORK.tokens), bool)
        caches = [PromptCache(keys, values, mask, jnp.zeros(WORK.prompts, jnp.int32))] * 2
        groups = (WORK.group, WORK.shuffled_group)
        own = [attention.empty_cache(config.text, WORK.prompts, rows, slots, jnp.float32) for rows in groups]
        newest = jnp.zeros((WORK.prompts, sum(groups)), jnp.int32)
        hidden, own = base.decode(model, caches, groups, own, newest, jnp.int32(0))
        return base.logits(model, hidden), own

    assert counted_by_xla(step, model) == pytest.approx(flops.decode(ONE_LAYER, WORK, slots), rel=TOLERANCE)


def test_scoring_answers(model, prompt, tokens):
    counted = counted_by_xla(score_completions, model, prompt, tokens)
    assert counted == pytest.approx(flops.reference(ONE_LAYER, WORK), rel=TOLERANCE)
    separately = dataclasses.replace(WORK, prompts=WORK.prompts * WORK.group, group=1)
    assert counted != pytest.approx(flops.reference(ONE_LAYER, separately), rel=0.2)


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_and_backward(model, prompt, tokens, frozen):
    optimizer = OptimizerConfig(freeze_vision=frozen)

    def loss(moving, model, prompt, tokens):
        return score_completions(with_frozen(moving, model), prompt, tokens).logps.sum()

    counted = counted_by_xla(jax.grad(loss), trained(model, optimizer), model, prompt, tokens)
    expected = flops.update(ONE_LAYER, WORK, remat=True, trains_vision=not frozen)
    assert counted == pytest.approx(expected, rel=TOLERANCE)
    for other in ({"trains_vision": not frozen}, {"remat": True, "trains_vision": frozen}):
        assert counted != pytest.approx(flops.update(ONE_LAYER, WORK, **other), rel=0.1)


def test_forward_and_backward_of_adapters(model, prompt, tokens):
    """Of rank 1, which costs next to nothing. The first layer needs no gradient of what it is given."""
    adapted = jax.eval_shape(lambda m: add_adapters(m, LoraConfig(rank=1), jax.random.key(0)), model)

    def loss(moving, model, prompt, tokens):
        return score_completions(with_frozen(moving, model), prompt, tokens).logps.sum()

    counted = counted_by_xla(jax.grad(loss), trained(adapted, OptimizerConfig()), adapted, prompt, tokens)
    expected = flops.update(ONE_LAYER, WORK, remat=True, trains_vision=False, adapters_only=True)
    text, rows = ONE_LAYER.text, WORK.prompts * (WORK.tokens + WORK.group * WORK.answer)
    expected -= 2 * rows * text.width * (text.heads + 2 * text.kv_heads) * text.head_dim
    assert counted == pytest.approx(expected, rel=TOLERANCE)
    assert counted != pytest.approx(flops.update(ONE_LAYER, WORK, remat=True, trains_vision=False), rel=0.1)


def test_a_rollout_is_its_parts():
    short = dataclasses.replace(WORK, answer=1)
    read = flops.rollout(ONE_LAYER, short)
    assert flops.rollout(ONE_LAYER, dataclasses.replace(WORK, answer=2)) - read == flops.decode(ONE_LAYER, WORK, 1)
    ordered_only = dataclasses.replace(short, shuffled_group=0)
    assert read < 2 * flops.rollout(ONE_LAYER, ordered_only)


def test_bytes_of_a_token():
    text = ONE_LAYER.text
    one = Workload(prompts=1, slices=0, patches=0, tokens=10, group=1, answer=2)
    values = flops.count_parameters(ONE_LAYER)
    weights = values.text + values.head + text.width  # one row of the embedding
    cache = 2 * text.kv_heads * text.head_dim * (10 + 1)
    assert flops.decode_bytes(ONE_LAYER, one, 1) == 2 * (weights + cache)
    assert flops.rollout_bytes(ONE_LAYER, one, bytes_per_value=4) == 4 * (weights + cache)
