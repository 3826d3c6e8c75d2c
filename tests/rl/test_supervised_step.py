"""The supervised step against transformers' own loss, one unpadded sequence at a time as upstream computed it."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference_model import IMAGE, batch, mixed_cases, ours_from, reference_inputs

from vr1_jax.config import OptimizerConfig
from vr1_jax.training.steps import init_state, sft_step
from vr1_jax.types import Supervised

B, C = 4, 9
LENGTHS = (9, 2, 5, 7)  # of answers: unequal, or all means would be the same
TOLERANCE = 1e-5
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, clip_norm=1e9, weight_decay=0.0)  # no clip: gradients as they are


@pytest.fixture(scope="module")
def cases():
    return mixed_cases()[:B]


@pytest.fixture(scope="module")
def answers():
    return np.random.default_rng(3).integers(0, 280, (B, C))


def supervised(cases, answers, with_prompt, *, first=False):
    """`first` also counts the first token of each prompt, which nothing predicts."""
    prompt = batch(cases, rule="transformers5")
    counted = np.array(prompt.mask & (prompt.tokens != IMAGE))
    if not first:
        counted[np.arange(B), np.asarray(prompt.mask).argmax(1)] = False
    mask = np.arange(C) < np.array(LENGTHS)[:, None]
    prompt_mask = jnp.asarray(counted) if with_prompt else None
    return Supervised(prompt, jnp.asarray(answers[:, None]), jnp.asarray(mask[:, None]), prompt_mask)


def reference_loss(model, cases, answers, with_prompt, aggregation):
    """transformers' means, and what they are means of; images' placeholders are left out, as upstream did."""
    losses, counts = [], []
    for case, answer, length in zip(cases, answers, LENGTHS, strict=True):
        whole = copy.copy(case)
        whole.tokens = np.concatenate([case.tokens, answer[:length]])
        labels = torch.tensor(whole.tokens, dtype=torch.long)[None]
        labels[labels == IMAGE] = -100
        if not with_prompt:
            labels[:, : len(case.tokens)] = -100
        losses.append(model(**reference_inputs(whole), labels=labels).loss)
        counts.append((labels[:, 1:] != -100).sum())
    losses, counts = torch.stack(losses), torch.stack(counts)
    loss = losses.mean() if aggregation == "sequence" else (losses * counts).sum() / counts.sum()
    return loss, counts.sum()


def update(model, lesson, **options):
    state = init_state(jax.tree.map(jnp.copy, model), OPTIMIZER)
    state, metrics = sft_step(state, lesson, optimizer=OPTIMIZER, compute_dtype="float32", **options)
    return jax.tree.map(lambda mu: mu / 0.1, state.opt_state[1].mu), metrics


@pytest.mark.parametrize("with_prompt", [True, False], ids=["whole", "answer"])
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_loss_and_gradients_are_those_of_transformers(untied, cases, answers, aggregation, with_prompt):
    reference = copy.deepcopy(untied[0]).train()
    loss, tokens = reference_loss(reference, cases, answers, with_prompt, aggregation)
    loss.backward()
    with torch.no_grad():
        for weight in reference.parameters():
            weight.copy_(weight.grad)
    expected = ours_from(reference)
    for microbatches in (1, 2):
        lesson = supervised(cases, answers, with_prompt)
        grads, metrics = update(untied[1], lesson, aggregation=aggregation, microbatches=microbatches)
        assert metrics["tokens"] == tokens.item()
        np.testing.assert_allclose(metrics["loss"], loss.item(), atol=TOLERANCE)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
        assert max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs) < TOLERANCE


def test_the_means_differ_and_so_does_a_first_token(untied, cases, answers):
    """By far more than the tolerance above."""
    lessons = {first: supervised(cases, answers, True, first=first) for first in (False, True)}
    losses = [
        float(update(untied[1], lessons[first], aggregation=aggregation)[1]["loss"])
        for first, aggregation in ((False, "token"), (False, "sequence"), (True, "sequence"))
    ]
    assert min(abs(losses[0] - losses[1]), abs(losses[1] - losses[2])) > 100 * TOLERANCE
