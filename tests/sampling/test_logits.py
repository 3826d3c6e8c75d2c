"""The sampler's distribution: against exact probabilities, and against transformers' warpers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from vr1_jax.sampling import logits as sampling

DRAWS = 100_000
# Fixed before looking: a right sampler fails one test in ten thousand, and the seeds are fixed.
SMALLEST_P = 1e-4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, the last one partly filled, at the small vocabularies of these tests."""
    monkeypatch.setattr(sampling, "_BLOCK", 8)


@functools.partial(jax.jit, static_argnames="top_k")
def sample_rows(logits, keys, temperature, top_p, top_k):
    return sampling.sample(logits, keys, temperature, top_p, top_k)


def draws(row, temperature=1.0, top_p=1.0, top_k=0, seed=0):
    """Many rows of the same logits, each with its own key."""
    logits = np.broadcast_to(np.asarray(row, np.float32), (DRAWS, len(row)))
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return np.asarray(sample_rows(logits, keys, jnp.float32(temperature), jnp.float32(top_p), top_k))


def exact(row, temperature=1.0, top_p=1.0, top_k=0):
    """Probabilities by definition, in float64."""
    row = np.asarray(row, np.float64) / temperature
    weights = np.exp(row - row.max())
    if top_k:
        weights[weights < np.sort(weights)[-top_k:][0]] = 0
    probs = weights / weights.sum()
    above = np.array([probs[probs > p].sum() for p in probs])
    kept = np.where(above < top_p, probs, 0)
    return kept / kept.sum()


def chi_square_p(tokens, probs):
    counts = np.bincount(tokens, minlength=len(probs))
    if counts[probs == 0].any():
        return 0.0
    return stats.chisquare(counts[probs > 0], DRAWS * probs[probs > 0]).pvalue if (probs > 0).sum() > 1 else 1.0


RANDOM = np.random.default_rng(0).normal(size=37) * 1.5
DISTRIBUTIONS = {
    "random": RANDOM,
    "flat": np.zeros(37),
    "peaked": np.where(np.arange(37) == 20, 8.0, RANDOM),
    "ties": np.round(RANDOM),
    "one block": RANDOM[:5],
    "two tokens": np.array([0.3, -0.2]),
    "forbidden": np.where(np.arange(37) % 3 == 0, -np.inf, RANDOM),
    "last block alone": np.where(np.arange(37) < 33, -np.inf, RANDOM),
    "huge": RANDOM + 1e4,
}
SETTINGS = {
    "plain": {},
    "top_p": {"top_p": 0.8},
    "low top_p": {"top_p": 0.001},
    "hot": {"temperature": 2.0, "top_p": 0.95},
    "cold": {"temperature": 0.5, "top_p": 0.95},
    "top_k": {"top_k": 5},
    "top_k and top_p": {"top_k": 9, "top_p": 0.7, "temperature": 1.3},
    "top_k beyond the vocabulary": {"top_k": 50},
}


@pytest.mark.parametrize("row", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
@pytest.mark.parametrize("config", ["plain", "top_p", "low top_p"])
def test_draws_follow_the_exact_probabilities(row, config):
    config = SETTINGS[config]
    assert chi_square_p(draws(row, **config), exact(np.float32(row), **config)) > SMALLEST_P


@pytest.mark.parametrize("config", list(SETTINGS.values())[3:], ids=list(SETTINGS)[3:])
def test_draws_follow_temperature_and_top_k(config):
    assert chi_square_p(draws(RANDOM, **config), exact(RANDOM, **config)) > SMALLEST_P


@pytest.mark.parametrize("top_k", [1, 3, 20, 37])
@pytest.mark.parametrize("row", ["ties", "peaked", "forbidden"])
def test_top_k_keeps_the_k_largest_and_their_equals(row, top_k):
    row = np.float32(DISTRIBUTIONS[row])
    weights = np.exp(row - row.max())
    kept = np.asarray(sampling._keep_top_k(jnp.asarray(weights)[None], top_k))[0]
    np.testing.assert_array_equal(kept, np.where(weights >= np.sort(weights)[-top_k], weights, 0))


@pytest.mark.parametrize("wrong", [{"top_p": 0.78}, {"temperature": 1.05}, {"top_k": 36}])
def test_the_test_sees_a_small_error(wrong):
    right = {"top_p": 0.8} if "top_p" in wrong else {}
    assert chi_square_p(draws(RANDOM, **right), exact(RANDOM, **wrong)) < SMALLEST_P
    assert chi_square_p(draws(RANDOM, **right, seed=1), exact(RANDOM, **right)) > SMALLEST_P


def test_greedy_takes_the_first_of_the_largest():
    row = np.array([0.0, 3.0, -1.0, 3.0, -np.inf])
    assert set(draws(row, temperature=0.0, top_p=0.5)) == {1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("top_k", [0, 3])
def test_logits_that_are_no_numbers_end_in_some_token(bad, top_k):
    tokens = draws(np.where(np.arange(37) == 7, bad, RANDOM), top_p=0.9, top_k=top_k)
    assert ((tokens >= 0) & (tokens < 37)).all()


def warped(logits, top_p, top_k):
    """transformers' own truncation."""
    scores = torch.tensor(logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    return TopPLogitsWarper(top_p)(None, scores).numpy() if top_p < 1 else scores.numpy()


@pytest.mark.parametrize(("top_p", "top_k"), [(0.95, 0), (0.5, 0), (0.001, 0), (0.9, 7), (1.0, 4)])
def test_support_equals_transformers(top_p, top_k):
    rng = np.random.default_rng(3)
    for row in rng.normal(size=(3, 37)).astype(np.float32):
        support = set(np.flatnonzero(np.isfinite(warped(row[None], top_p, top_k)[0])))
        probs = exact(row, top_p=top_p, top_k=top_k)
        assert support == set(np.flatnonzero(probs))
        drawn = set(draws(row, top_p=top_p, top_k=top_k))
        assert drawn <= support
        assert {i for i in support if probs[i] > 1e-3} <= drawn


@pytest.mark.parametrize(("top_p", "top_k"), [(0.95, 0), (0.9, 7), (1.0, 0)])
def test_truncated_log_prob_equals_transformers(top_p, top_k):
    logits = np.random.default_rng(4).normal(size=(50, 37)).astype(np.float32) * 2
    expected = torch.log_softmax(torch.tensor(warped(logits / np.float32(0.7), top_p, top_k)), -1).numpy()
    tokens = expected.argmax(-1)
    got = sampling.truncated_log_prob(
        jnp.asarray(logits), jnp.asarray(tokens), jnp.float32(0.7), jnp.float32(top_p), top_k
    )
    np.testing.assert_allclose(got, expected[np.arange(50), tokens], atol=1e-5)


def test_truncated_log_prob_of_ties_is_what_they_are_drawn_with():
    row = np.round(RANDOM)
    probs = exact(row, top_p=0.6)
    tokens = np.flatnonzero(probs)
    got = sampling.truncated_log_prob(
        jnp.broadcast_to(jnp.asarray(row, jnp.float32), (len(tokens), 37)),
        jnp.asarray(tokens),
        jnp.float32(1),
        jnp.float32(0.6),
    )
    np.testing.assert_allclose(got, np.log(probs[tokens]), atol=1e-5)


def test_log_prob_is_of_the_whole_distribution():
    logits = np.random.default_rng(5).normal(size=(4, 37)).astype(np.float32) * 3
    tokens = np.array([0, 36, 5, 11])
    expected = torch.log_softmax(torch.tensor(logits), -1).numpy()[np.arange(4), tokens]
    np.testing.assert_allclose(sampling.log_prob(jnp.asarray(logits), jnp.asarray(tokens)), expected, atol=1e-6)


@pytest.mark.parametrize("penalty", [1.05, 0.5])
def test_repetition_penalty_equals_transformers(penalty):
    rng = np.random.default_rng(6)
    logits, tokens = rng.normal(size=(5, 37)).astype(np.float32), rng.integers(0, 37, (5, 12))
    seen = np.zeros((5, 37), bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(tokens), torch.tensor(logits)).numpy()
    got = sampling.penalize_repetition(jnp.asarray(logits), jnp.asarray(seen), jnp.float32(penalty))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_rows_do_not_depend_on_their_neighbours():
    """A flat row needs one round, its neighbours several; each draws what it draws alone."""
    rng = np.random.default_rng(7)
    logits = jnp.asarray(rng.normal(size=(8, 37)) * rng.uniform(0, 3, (8, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 8)

    def sample(logits, keys):
        return np.asarray(sample_rows(logits, keys, jnp.float32(1), jnp.float32(0.3), 0))

    together = sample(logits, keys)
    order = rng.permutation(8)
    np.testing.assert_array_equal(sample(logits[order], keys[order]), together[order])
    np.testing.assert_array_equal(sample(logits.reshape(2, 4, 37), keys.reshape(2, 4)), together.reshape(2, 4))
    alone = np.concatenate([sample(logits[i : i + 1], keys[i : i + 1]) for i in range(8)])
    np.testing.assert_array_equal(alone, together)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 300.0]),
    forbidden=st.sampled_from([0.0, 0.5, 0.99]),
    top_p=st.sampled_from([1e-6, 0.001, 0.5, 0.95, 0.999999, 1.0]),
)
def test_every_draw_lies_in_the_nucleus(seed, spread, forbidden, top_p):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(64, 300)) * spread).astype(np.float32)
    logits[rng.random((64, 300)) < forbidden] = -np.inf
    logits[:, 17] = np.where(np.isfinite(logits).any(1), logits[:, 17], 0)
    keys = jax.random.split(jax.random.key(seed), 64)
    tokens = np.asarray(sample_rows(logits, keys, jnp.float32(1), jnp.float32(top_p), 0))
    weights = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64))
    weight = weights[np.arange(64), tokens]
    more_likely = weights > weight[:, None] * (1 + 1e-6)  # by more than float32 can tell apart
    above = np.where(more_likely, weights, 0).sum(1) / weights.sum(1)
    assert (weight > 0).all()
    assert ((above < top_p + 1e-6) | (above == 0)).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_nothing_without_weight_is_drawn_at_full_size(monkeypatch, uniform):
    """Weights over 30 powers of ten with most of them masked: running sums of 152k numbers round."""
    monkeypatch.setattr(sampling, "_BLOCK", 256)
    rng = np.random.default_rng(8)
    weights = np.exp(-rng.exponential(20, (16, 152_064))).astype(np.float32)
    weights[rng.random(weights.shape) < np.linspace(0, 0.9999, 16)[:, None]] = 0
    weights[:, 77] = 1
    tokens = jax.jit(sampling._draw)(weights, jnp.full(16, uniform, jnp.float32))
    assert (weights[np.arange(16), tokens] > 0).all()


def test_running_sums_may_rise_by_rounding_alone():
    """Every place without weight is passed over, whatever the target."""
    weights = np.zeros((1, 37), np.float32)
    weights[0, [3, 11, 30]] = 0.1, 1e-9, 0.7
    targets = jnp.linspace(0, 1, 1001, dtype=jnp.float32)
    places = sampling._first_above(jnp.broadcast_to(weights, (1001, 37)), targets)
    assert set(np.asarray(places)) <= {3, 11, 30}
    assert places[-1] == 30
