"""The whole policy step against plain torch, written as upstream does it: every completion with its own copy
of the prompt, through transformers' model with transformers' positions.

torch's AdamW and ours agree but for one detail: its clipping divides by the norm plus 1e-6.
"""

import copy
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference_model import batch, mixed_cases, ours_from, reference_inputs

from vr1_jax.config import OptimizerConfig
from vr1_jax.rl.advantages import GRPOConfig, group_advantages
from vr1_jax.sharding import TRAIN_RULES, batch_sharding, make_mesh, reshard
from vr1_jax.training.steps import grpo_step, init_state, score_batch
from vr1_jax.types import Completion, Experience

B, G, C = 4, 3, 6
EOS = 281
TOLERANCE = 1e-5
ALGORITHM = GRPOConfig(clip_low=0.2, clip_high=0.2, beta=0.04)
# A large learning rate, so that one update moves what the next one sees; eps well above rounding.
OPTIMIZER = OptimizerConfig(
    learning_rate=2e-3, schedule="cosine", total_steps=10, weight_decay=0.1, clip_norm=0.3, eps=1e-5
)
step = functools.partial(grpo_step, algorithm=ALGORITHM, compute_dtype=jnp.float32)
score = functools.partial(score_batch, microbatches=1)


@pytest.fixture(scope="module")
def cases():
    return mixed_cases()[:B]


@pytest.fixture(scope="module")
def tokens():
    """Some completions end early, one at once; what stands behind their end is junk."""
    tokens = np.random.default_rng(1).integers(0, 280, (B, G, C))
    for b, g, end in ((0, 1, 3), (1, 2, 0), (2, 0, 4), (3, 1, 2)):
        tokens[b, g, end] = EOS
    return tokens


@pytest.fixture(scope="module")
def rewards():
    rewards = np.random.default_rng(2).choice([0.0, 1.0, 1.3, 2.2], (B, G))
    rewards[0] = 0.0, 1.0, 2.0
    rewards[3] = 1.0  # nothing to learn
    return rewards


@pytest.fixture(scope="module")
def frozen(untied):
    """The reference policy: near the policy, but not it."""
    torch.manual_seed(5)
    model = copy.deepcopy(untied[0])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02 * weight.std() if weight.ndim > 1 else 0)
    return model


class Oracle:
    """Upstream's step in torch; the trained model is a copy."""

    def __init__(self, reference, cases, tokens, rewards, frozen):
        self.model, self.frozen = copy.deepcopy(reference).train(), frozen
        self.cases, self.tokens = cases, torch.tensor(tokens)
        rewards = torch.tensor(rewards, dtype=torch.float32)
        self.advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        ends = (self.tokens == EOS).int()
        first = torch.where(ends.any(2), ends.argmax(2), C)
        self.mask = (torch.arange(C) <= first[..., None]).float()
        decayed = is_decayed_by_name(self.model)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for n, p in self.model.named_parameters() if n in decayed], "weight_decay": 0.1},
                {"params": [p for n, p in self.model.named_parameters() if n not in decayed], "weight_decay": 0.0},
            ],
            lr=OPTIMIZER.learning_rate,
            betas=(0.9, 0.999),
            eps=OPTIMIZER.eps,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda n: 0.5 * (1 + math.cos(math.pi * n / OPTIMIZER.total_steps))
        )

    def logps(self, model, b):
        """[G, C] of prompt b, one completion at a time."""
        rows = []
        for row in self.tokens[b]:
            case = copy.copy(self.cases[b])
            case.tokens = np.concatenate([case.tokens, row.numpy()])
            logits = model(**reference_inputs(case)).logits[0, -C - 1 : -1]
            rows.append(torch.log_softmax(logits, -1).gather(1, row[:, None])[:, 0])
        return torch.stack(rows)

    @torch.no_grad()
    def fixed_logps(self, model):
        return torch.stack([self.logps(model, b) for b in range(B)])

    def loss(self, old_logps=None, prompts=range(B)):
        losses = []
        for b in prompts:
            logps, mask = self.logps(self.model, b), self.mask[b]
            old = logps.detach() if old_logps is None else old_logps[b]
            ratio, advantage = torch.exp(logps - old), self.advantages[b][:, None]
            gain = torch.min(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage)
            with torch.no_grad():
                ref = self.logps(self.frozen, b)
            x = torch.clamp(ref - logps, -10, 10)
            per_token = -(gain - 0.04 * (torch.exp(x) - x - 1))
            losses.append((per_token * mask).sum(1) / mask.sum(1))
        return torch.cat(losses).mean()

    def update(self, *args):
        """Returns the loss, and the gradients before clipping as a model of ours."""
        self.optimizer.zero_grad()
        loss = self.loss(*args)
        loss.backward()
        grads = copy.deepcopy(self.model)
        with torch.no_grad():
            for into, p in zip(grads.parameters(), self.model.parameters(), strict=True):
                into.copy_(p.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss.item(), norm.item(), ours_from(grads)


def is_decayed_by_name(model):
    return {name for name, p in model.named_parameters() if p.ndim > 1}


@pytest.fixture
def oracle(untied, cases, tokens, rewards, frozen):
    return Oracle(untied[0], cases, tokens, rewards, frozen)


@pytest.fixture(scope="module")
def experience(untied, cases, tokens, rewards, frozen):
    prompt = batch(cases, rule="transformers5")
    ended = np.cumsum(tokens == EOS, -1) - (tokens == EOS) > 0
    completion = Completion(
        jnp.asarray(tokens), jnp.asarray(~ended), jnp.zeros((B, G, C)), jnp.asarray((tokens == EOS).any(-1))
    )
    ref = score(ours_from(frozen), prompt, completion.tokens).logps
    return Experience(prompt, completion, jnp.asarray(group_advantages(rewards), jnp.float32), ref, None)


def fresh_state(model):
    """The step donates its state; the model of the fixtures stays."""
    return init_state(jax.tree.map(jnp.copy, model), OPTIMIZER)


def worst(ours, theirs):
    """Largest difference of any parameter, relative to that parameter's largest value."""
    pairs = zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    scaled = {jax.tree_util.keystr(path): float(np.abs(a - b).max() / np.abs(b).max()) for (path, a), b in pairs}
    return max(scaled.values()), max(scaled, key=scaled.get)


def test_the_step_equals_upstream_in_torch(untied, oracle, experience):
    model = untied[1]
    np.testing.assert_allclose(experience.advantages, oracle.advantages, atol=TOLERANCE)
    np.testing.assert_allclose(experience.ref_logps, oracle.fixed_logps(oracle.frozen), atol=TOLERANCE)
    np.testing.assert_array_equal(experience.completion.mask, oracle.mask)
    loss, norm, grads = oracle.update()

    state, metrics = step(fresh_state(model), experience, optimizer=OPTIMIZER)
    np.testing.assert_allclose(metrics["loss"], loss, atol=TOLERANCE)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=TOLERANCE)
    assert norm > OPTIMIZER.clip_norm  # so the clip is part of what is compared
    used = jax.tree.map(lambda mu: mu / 0.1 * norm / OPTIMIZER.clip_norm, state.opt_state[1].mu)
    assert worst(used, grads)[0] < TOLERANCE
    assert worst(state.model, ours_from(oracle.model))[0] < TOLERANCE
    assert worst(model, ours_from(oracle.model))[0] > 100 * TOLERANCE  # the update is larger than that


def test_inner_epochs_over_minibatches_equal_torch(untied, oracle, experience):
    """Two epochs over two minibatches: from the second update on the ratios differ from 1 and some are clipped."""
    halves = (0, 1), (2, 3)
    old = oracle.fixed_logps(oracle.model)
    expected = [oracle.update(old, half)[:2] for _ in range(2) for half in halves]

    prompt, tokens = experience.prompt, experience.completion.tokens
    with_old = Experience(
        prompt, experience.completion, experience.advantages, experience.ref_logps,
        score(untied[1], prompt, tokens).logps,
    )  # fmt: skip
    state, got, clipped = fresh_state(untied[1]), [], []
    for _ in range(2):
        for first, last in halves:
            part = jax.tree.map(lambda x, first=first, last=last: x[first : last + 1], with_old)
            state, metrics = step(state, part, optimizer=OPTIMIZER)
            got.append((metrics["loss"], metrics["grad_norm"]))
            clipped.append(metrics["clipped_low"] + metrics["clipped_high"])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=TOLERANCE)
    assert clipped[0] == 0 < max(clipped)
    assert worst(state.model, ours_from(oracle.model))[0] < 10 * TOLERANCE


@pytest.fixture(scope="module")
def stepped(untied, experience):
    return step(fresh_state(untied[1]), experience, optimizer=OPTIMIZER)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_change_nothing(untied, experience, stepped, microbatches):
    state, metrics = step(fresh_state(untied[1]), experience, optimizer=OPTIMIZER, microbatches=microbatches)
    assert worst(state.opt_state[1].mu, stepped[0].opt_state[1].mu)[0] < TOLERANCE
    for name, value in stepped[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 2, 2)], ids=["4x2", "2x2x2"])
def test_meshes_change_nothing(untied, experience, stepped, shape):
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        state = reshard(fresh_state(untied[1]), TRAIN_RULES, mesh)
        state, metrics = step(state, jax.device_put(experience, batch_sharding(mesh)), optimizer=OPTIMIZER)
    assert worst(state.opt_state[1].mu, stepped[0].opt_state[1].mu)[0] < TOLERANCE
    for name, value in stepped[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    query = state.opt_state[1].mu.text.layers.query[...]
    assert query.addressable_shards[0].data.size * shape[1] * shape[2] == query.size  # moments are split too


def test_the_samplers_own_log_probs_weigh_the_step(untied, experience):
    """A sampler that gave every token half the trainer's chance: weight 2, or the cap where that is less."""
    completion, model = experience.completion, untied[1]
    logps = score(model, experience.prompt, completion.tokens).logps - jnp.log(2.0)
    without_kl = dataclasses.replace(
        experience, ref_logps=None, completion=dataclasses.replace(completion, logps=logps)
    )
    norms = {}
    for cap in (0.0, 1.5, 3.0):
        algorithm = dataclasses.replace(ALGORITHM, beta=0.0, sampler_cap=cap)
        _, metrics = step(fresh_state(model), without_kl, algorithm=algorithm, optimizer=OPTIMIZER)
        norms[cap] = float(metrics["grad_norm"])
    assert norms[1.5] == pytest.approx(1.5 * norms[0.0], rel=1e-4)
    assert norms[3.0] == pytest.approx(2.0 * norms[0.0], rel=1e-4)
    assert float(metrics["sampler_weight_mean"]) == pytest.approx(2.0, rel=1e-4)


def test_a_loss_that_is_not_finite_is_skipped_and_counted(untied, experience):
    poisoned = Experience(
        experience.prompt, experience.completion, experience.advantages.at[0, 0].set(jnp.nan),
        experience.ref_logps, None,
    )  # fmt: skip
    state, _ = step(fresh_state(untied[1]), experience, optimizer=OPTIMIZER)
    before = jax.tree.map(np.array, (state.model, state.opt_state))
    for count in (1, 2):
        state, metrics = step(state, poisoned, optimizer=OPTIMIZER)
        assert metrics["skipped"] == metrics["skipped_in_a_row"] == count
        assert not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, (state.model, state.opt_state), before)
    state, metrics = step(state, experience, optimizer=OPTIMIZER)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (4, 2, 0)
    assert worst(state.model, before[0])[0] > 0


def test_the_state_is_donated(untied, experience):
    state = fresh_state(untied[1])
    step(state, experience, optimizer=OPTIMIZER)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.model, state.opt_state)))
