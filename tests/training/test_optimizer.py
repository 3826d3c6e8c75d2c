"""The optimizer against torch's AdamW; moments in less memory against whole ones; the frozen vision tower."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from reference_model import hf_config, random_reference
from tiny_state import checkpoints, same, tiny_config
from transformers import optimization
from transformers.trainer_pt_utils import get_parameter_names

from vr1_jax.config import OptimizerConfig
from vr1_jax.errors import UsageError
from vr1_jax.models import families
from vr1_jax.models.families import parse_hf_config
from vr1_jax.models.qwen25vl import PUBLISHED, Qwen25VL
from vr1_jax.sharding import TRAIN_RULES, abstract, make_mesh, reshard, shardings
from vr1_jax.training.moments import decode, encode
from vr1_jax.training.optimizer import is_decayed, learning_rate, make_optimizer
from vr1_jax.training.steps import init_state, sft_step
from vr1_jax.types import Supervised, blank_prompt

CONFIG = OptimizerConfig(
    learning_rate=0.01, schedule="cosine", total_steps=12, warmup_steps=3, weight_decay=0.1, clip_norm=1.0
)


def transformers_schedule(config, adamw):
    if config.schedule == "constant":
        return optimization.get_constant_schedule_with_warmup(adamw, config.warmup_steps)
    make = getattr(optimization, f"get_{config.schedule}_schedule_with_warmup")
    return make(adamw, config.warmup_steps, config.total_steps)


def transformers_rates(config, updates):
    """The rates that transformers' schedule gives an optimizer."""
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule, rates = transformers_schedule(config, adamw), []
    for _ in range(updates):
        rates.append(adamw.param_groups[0]["lr"])
        adamw.step()
        schedule.step()
    return rates


def our_rates(config, updates):
    return np.array([float(learning_rate(config)(n)) for n in range(updates)])


@pytest.mark.parametrize("warmup", [0, 1, 3, 12])
@pytest.mark.parametrize(("schedule", "total"), [("constant", None), ("linear", 12), ("cosine", 12)])
def test_rates_are_those_of_transformers(schedule, total, warmup):
    """Ours are float32: their last bit is 6e-8 of the rate."""
    config = dataclasses.replace(CONFIG, schedule=schedule, total_steps=total, warmup_steps=warmup)
    rates = our_rates(config, 12)
    np.testing.assert_allclose(rates, transformers_rates(config, 12), atol=1e-6 * config.learning_rate)
    other = dataclasses.replace(config, warmup_steps=warmup + 1, total_steps=total and 13)
    assert np.abs(rates - our_rates(other, 12)).max() > 0.01 * config.learning_rate


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_floor_under_the_rate(schedule):
    config = dataclasses.replace(CONFIG, schedule=schedule, warmup_steps=0, final_fraction=0.1)
    bare = our_rates(dataclasses.replace(config, final_fraction=0.0), 15)
    floor = 0.1 * config.learning_rate
    np.testing.assert_allclose(our_rates(config, 15), floor + 0.9 * bare, rtol=1e-5)
    np.testing.assert_allclose(our_rates(config, 15)[12:], floor, rtol=1e-5)  # and stays there


def test_updates_equal_torch_adamw():
    """Twelve steps with gradients below and above the clip. torch's clip divides by the norm plus 1e-6."""
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in ("weight", "norm")}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [theirs["weight"]], "weight_decay": CONFIG.weight_decay},
        {"params": [theirs["norm"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=CONFIG.learning_rate, betas=(CONFIG.b1, CONFIG.b2), eps=CONFIG.eps)
    decline = transformers_schedule(CONFIG, adamw)
    optimizer, ours = make_optimizer(CONFIG), jax.tree.map(jnp.asarray, start)
    state = optimizer.init(ours)
    for n in range(12):
        grads = {name: rng.normal(size=(4, 3)).astype(np.float32) * 0.03 * 3**n for name in start}
        for name, p in theirs.items():
            p.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), CONFIG.clip_norm)
        adamw.step()
        decline.step()
        updates, state = optimizer.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, p in theirs.items():
            np.testing.assert_allclose(ours[name], p.detach(), atol=2e-6)


def decayed_names(rule):
    model = families.abstract_model(parse_hf_config(hf_config(tied=False)))
    names = {jax.tree_util.keystr(path): is_decayed(path, rule) for path, _ in jax.tree.leaves_with_path(model)}
    return {name.removesuffix(".value") for name, decayed in names.items() if decayed}, set(names)


def test_matrices_decay_and_nothing_else():
    decayed, every = decayed_names("matrices")
    assert not any("norm" in name or "bias" in name for name in decayed)
    spared = {name for name in every if "norm" in name or "bias" in name}
    assert len(decayed) + len(spared) == len(every)
    assert len(decayed) > 10


def test_upstream_decays_the_norms_of_the_vision_tower_and_the_last_one():
    more = decayed_names("upstream")[0] - decayed_names("matrices")[0]
    assert {name.split(".", 1)[1] for name in more} == {
        "text.norm", "vision.layers.attention_norm", "vision.layers.mlp_norm", "vision.merger_norm",
    }  # fmt: skip


def test_upstream_decays_what_its_trainer_decayed():
    """transformers' own choice of names, by the rule of upstream's version of it."""
    reference = random_reference(tied=False)
    names = get_parameter_names(reference, [torch.nn.LayerNorm], ["bias", "layernorm", "rmsnorm"])
    theirs = {Qwen25VL.published_name(name) for name in names}
    decayed, every = decayed_names("upstream")
    config = parse_hf_config(hf_config(tied=False))
    assert len(Qwen25VL.rules(config)) == len(every)
    for rule in Qwen25VL.rules(config):
        assert (f".{rule.path}" in decayed) == (rule.key.format(0) in theirs), rule.path


@pytest.mark.parametrize(
    "wrong",
    [
        {"total_steps": 0, "schedule": "linear"},
        {"total_steps": 10, "schedule": "cosine", "warmup_steps": 11},
        {"total_steps": 10},
        {"total_steps": None, "schedule": "cosine"},
        {"warmup_steps": -1},
        {"learning_rate": 0.0},
        {"clip_norm": -1.0},
        {"weight_decay": -0.1},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


# The code need not be fast: compiling is what takes time here.
QUICKLY = {"xla_backend_optimization_level": 0}
SMALL = dataclasses.replace(CONFIG, learning_rate=3e-3, total_steps=60, warmup_steps=0, weight_decay=0.0)


@pytest.fixture(scope="module")
def lesson():
    """Answers to learn by heart."""
    rng = np.random.default_rng(0)
    prompt = blank_prompt(8, slices=1, patches=16, tokens=12)
    tokens = jnp.asarray(rng.integers(0, 280, (8, 1, 6)), jnp.int32)
    pixels = jnp.asarray(rng.integers(0, 255, prompt.patches.shape), jnp.uint8)
    slots = prompt.visual_slots.at[:, 2:6].set(jnp.arange(4))
    prompt = dataclasses.replace(prompt, tokens=tokens[:, 0].repeat(2, 1), patches=pixels, visual_slots=slots)
    return Supervised(prompt, tokens, jnp.ones(tokens.shape, bool), None)


def random_model():
    """Made by numpy: jax would compile a program for each parameter."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        values = rng.normal(size=leaf.shape) * 0.02
        return jnp.asarray(values + ("norm" in jax.tree_util.keystr(path)), leaf.dtype)

    return jax.tree.map_with_path(fill, families.abstract_model(tiny_config()))


def learn(optimizer, lesson, steps):
    """State and losses after some steps."""
    state, losses = init_state(random_model(), optimizer), []
    lowered = sft_step.lower(state, lesson, optimizer=optimizer, compute_dtype="float32")
    step = lowered.compile(compiler_options=QUICKLY)
    for _ in range(steps):
        state, metrics = step(state, lesson)
        losses.append(float(metrics["loss"]))
    return state, losses


KINDS = {
    "float32": {},
    "int8": {"moments": "int8"},
    "factored": {"moments": "factored"},
    "frozen": {"freeze_vision": True},
}


@pytest.fixture(scope="module")
def learned(lesson):
    """After 25 steps, by kind."""
    return {kind: learn(dataclasses.replace(SMALL, **changes), lesson, 25) for kind, changes in KINDS.items()}


def test_smaller_moments_learn_as_well(learned):
    whole = learned["float32"][1]
    assert whole[-1] < 0.3 * whole[0]
    np.testing.assert_allclose(learned["int8"][1], whole, rtol=0.1)
    assert learned["factored"][1][-1] < 1.2 * whole[-1]


def bytes_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_bytes_of_moments(learned):
    """Rows of a tiny model are short, most of its arrays too small to factor; a 7B model has neither excuse."""
    parameters = bytes_of(learned["float32"][0].model) / 4
    assert bytes_of(learned["float32"][0].opt_state) == pytest.approx(8 * parameters, rel=0.001)
    assert bytes_of(learned["int8"][0].opt_state) < 2.3 * parameters
    of_7b = families.abstract_model(PUBLISHED["7B"])
    count = sum(x.size for x in jax.tree.leaves(of_7b))
    for kind, most in {"int8": 2.1, "factored": 0.01}.items():
        state = jax.eval_shape(make_optimizer(dataclasses.replace(SMALL, moments=kind)).init, of_7b)
        assert bytes_of(state) < most * count


@pytest.mark.parametrize("kind", ["int8", "factored"])
def test_small_moments_on_eight_devices_are_those_of_one(kind):
    """Rounded by the same chances: updates are equal but where a sum's last bit decides."""
    optimizer = make_optimizer(dataclasses.replace(SMALL, moments=kind))
    some = ("text.embed", "text.norm", "text.layers.key", "text.layers.out", "text.layers.down")
    model = jax.tree.map_with_path(
        lambda path, x: x if any(name in jax.tree_util.keystr(path) for name in some) else None, random_model()
    )
    gradients = [jax.tree.map(lambda p, n=n: jnp.sin(p * 100 * (n + 1)), model) for n in range(3)]

    def updates(step, state, gradients):
        all_updates = []
        for gradient in gradients:
            update, state = step(gradient, state, gradient)
            all_updates.append(update)
        return all_updates, state

    start = optimizer.init(model)
    expected, _ = updates(jax.jit(optimizer.update, compiler_options=QUICKLY), start, gradients)
    mesh = make_mesh(2, 2, 2)
    where = shardings(start, TRAIN_RULES, mesh)
    step = jax.jit(optimizer.update, out_shardings=(None, where), compiler_options=QUICKLY)
    placed = [reshard(gradient, TRAIN_RULES, mesh) for gradient in gradients]
    got, state = updates(step, jax.device_put(start, where), placed)
    ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (got, expected))
    assert (np.abs(ours - theirs) > 1e-6).mean() < 1e-4
    assert sum(not x.is_fully_replicated for x in jax.tree.leaves(state)) >= 6


def test_frozen_vision_neither_moves_nor_costs(learned):
    state, losses = learned["frozen"]
    assert losses[-1] < 0.3 * losses[0]
    start = random_model()
    for before, after in zip(*(jax.tree.leaves(model.vision) for model in (start, state.model)), strict=True):
        np.testing.assert_array_equal(before, after)
    moved = zip(*(jax.tree.leaves(model.text) for model in (start, state.model)), strict=True)
    assert all((before != after).any() for before, after in moved)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt_state)]
    assert not any("vision" in path for path in paths)


@pytest.mark.parametrize("kind", ["int8", "factored", "frozen"])
def test_small_states_are_saved_and_restored_onto_other_meshes(learned, tmp_path, kind):
    state, mesh = learned[kind][0], make_mesh(1, 4, 2)
    with checkpoints(tmp_path) as saved:
        saved.save(state, {}, {})
        saved.wait()
        like = jax.eval_shape(lambda: init_state(state.model, dataclasses.replace(SMALL, **KINDS[kind])))
        restored = saved.restore(abstract(like, TRAIN_RULES, mesh)).state
    assert same(restored, state)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.uint8, 0.045), (jnp.int8, 0.092)])
def test_bytes_keep_means_and_relative_precision(dtype, error):
    values = 10.0 ** jax.random.uniform(jax.random.key(1), (64,), minval=-4, maxval=0)
    values = values.at[0].set(0.0)
    values = values if dtype == jnp.uint8 else values * jnp.where(jnp.arange(64) % 2, 1, -1)
    draws = jax.vmap(lambda chance: decode(encode(values, dtype, chance)))(
        jax.random.uniform(jax.random.key(2), (4000, 64))
    )
    np.testing.assert_allclose(draws, jnp.broadcast_to(values, draws.shape), rtol=error)
    np.testing.assert_allclose(draws.mean(0), values, rtol=0.004)
