"""The optimizer against torch's AdamW: schedule, clipping, and which parameters decay."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from reference_model import hf_config

from vr1_jax.models import qwen25vl
from vr1_jax.models.config import parse_hf_config
from vr1_jax.training.optimizer import OptimizerConfig, OptimizerError, is_decayed, make_optimizer, schedule

CONFIG = OptimizerConfig(learning_rate=0.01, total_steps=12, warmup_steps=3, weight_decay=0.1, clip_norm=1.0)


def torch_schedule(n, config):
    if n < config.warmup_steps:
        return (n + 1) / config.warmup_steps
    done = (n - config.warmup_steps) / (config.total_steps - config.warmup_steps)
    floor = config.final_fraction
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


@pytest.mark.parametrize("final_fraction", [0.0, 0.1])
def test_schedule(final_fraction):
    config = dataclasses.replace(CONFIG, final_fraction=final_fraction)
    expected = [config.learning_rate * torch_schedule(n, config) for n in range(15)]
    np.testing.assert_allclose([schedule(config)(n) for n in range(15)], expected, rtol=1e-5, atol=1e-9)
    assert expected[0] == pytest.approx(config.learning_rate / 3)


@pytest.mark.parametrize("warmup", [0, 1, 12])
def test_first_step_moves_and_peak_is_the_learning_rate(warmup):
    rates = [float(schedule(dataclasses.replace(CONFIG, warmup_steps=warmup))(n)) for n in range(12)]
    assert rates[0] > 0
    assert max(rates) == pytest.approx(CONFIG.learning_rate)


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
    decline = torch.optim.lr_scheduler.LambdaLR(adamw, lambda n: torch_schedule(n, CONFIG))
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
    model = qwen25vl.abstract_model(parse_hf_config(hf_config(tied=False)))
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"total_steps": 0},
        {"warmup_steps": 2000},
        {"learning_rate": 0.0},
        {"clip_norm": -1.0},
        {"weight_decay": -0.1},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(OptimizerError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)
