"""Chunked log-probs: the direct ones, gradients included, and never the whole [B, G, C, V]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from reference_model import batch, mixed_cases

from vr1_jax.models import base
from vr1_jax.rl import logprobs
from vr1_jax.rl.logprobs import score_completions, score_tokens
from vr1_jax.training.steps import cast, score_batch

B, G, C = 3, 4, 11
CHUNK = 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Three chunks of the 44 positions, the last one partly filled."""
    monkeypatch.setattr(logprobs, "_CHUNK", CHUNK)


@pytest.fixture(scope="module")
def hidden(untied):
    width = untied[1].config.text.width
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, G, C, width)), jnp.float32)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, 300, (B, G, C)))


@pytest.fixture(scope="module")
def weights():
    return jnp.asarray(np.random.default_rng(2).normal(size=(B, G, C)), jnp.float32)


def direct(model, hidden, tokens):
    logps = jax.nn.log_softmax(base.logits(model, hidden))
    return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0], -(jnp.exp(logps) * logps).sum(-1)


def gradients(score, model, hidden, tokens, weights):
    return jax.jit(jax.grad(lambda m, h: (weights * score(m, h, tokens)[0]).sum(), (0, 1)))(model, hidden)


def test_chunked_equals_direct(untied, hidden, tokens):
    scores, (logps, entropy) = score_tokens(untied[1], hidden, tokens), direct(untied[1], hidden, tokens)
    np.testing.assert_allclose(scores.logps, logps, atol=1e-5)
    np.testing.assert_allclose(scores.entropy, entropy, atol=1e-5)


def test_gradients_equal_direct(untied, hidden, tokens, weights):
    (model, at_hidden), expected = (
        gradients(score, untied[1], hidden, tokens, weights) for score in (score_tokens, direct)
    )
    np.testing.assert_allclose(model.text.head[...], expected[0].text.head[...], atol=1e-5)
    np.testing.assert_allclose(at_hidden, expected[1], atol=1e-5)
    assert np.abs(expected[0].text.head[...]).max() > 1


def test_entropy_has_no_gradient(untied, hidden, tokens):
    grads = jax.grad(lambda h: score_tokens(untied[1], h, tokens).entropy.sum())(hidden)
    assert not np.asarray(grads).any()


def test_head_gradient_is_summed_in_fp32(untied, hidden, tokens, weights, monkeypatch):
    """bf16 compute, one position to a chunk: summed in bf16 the error is 1.7 times 2^-8, in fp32 0.6 times."""
    monkeypatch.setattr(logprobs, "_CHUNK", 1)
    model, hidden = cast(untied[1], jnp.bfloat16), hidden.astype(jnp.bfloat16)
    got = gradients(score_tokens, model, hidden, tokens, weights)[0].text.head[...]
    exact = gradients(direct, cast(model, jnp.float32), hidden.astype(jnp.float32), tokens, weights)[0]
    error = np.asarray(got.astype(jnp.float32) - exact.text.head[...])
    assert np.sqrt((error**2).mean()) < 2.0**-8 * np.sqrt((exact.text.head[...] ** 2).mean())


def largest(jaxpr):
    """Elements of the largest array with a vocabulary axis that any equation makes, nested ones included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars if 300 in v.aval.shape and 64 not in v.aval.shape]
        sizes += [largest(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


@pytest.mark.parametrize("score", [score_tokens, direct])
def test_all_scores_never_exist_at_once(untied, hidden, tokens, weights, score):
    """Forward and backward hold one chunk of scores; the direct way, to compare with, holds all."""
    model = untied[1]
    run = jax.grad(lambda m, h: (weights * score(m, h, tokens)[0]).sum(), (0, 1))
    size = largest(jax.make_jaxpr(run)(model, hidden).jaxpr)
    assert size == (B * CHUNK * 300 if score is score_tokens else B * G * C * 300)


def test_microbatches_score_the_same(untied):
    prompt = batch(mixed_cases()[:4])
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 280, (4, 2, 5)))
    whole, parts = (score_batch(untied[1], prompt, tokens, microbatches=n) for n in (1, 2))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    alone = jax.jit(score_completions)(untied[1], jax.tree.map(lambda x: x[1:3], prompt), tokens[1:3])
    np.testing.assert_allclose(whole.logps[1:3], alone.logps, atol=1e-5)
