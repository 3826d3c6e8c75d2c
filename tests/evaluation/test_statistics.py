"""Intervals cover what they should, follow clusters, and are the same every time."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from vr1_jax.evaluation.results import cluster_means, majority_at_k, pass_at_k, sign_flip_p


def means(values, clusters, **groups):
    values = np.asarray(values, float)
    masks = {"all": np.ones(len(values), bool)} | {k: np.asarray(v, bool) for k, v in groups.items()}
    return cluster_means(values, clusters, masks, seed=0)


def test_the_interval_of_independent_values_is_the_known_one():
    rng = np.random.default_rng(1)
    values = (rng.random(2000) < 0.3).astype(float)
    found = means(values, range(2000))["all"]
    assert found.mean == pytest.approx(values.mean())
    low, high = found.interval
    error = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert (high - low) / 2 == pytest.approx(error, rel=0.1)


def test_questions_about_one_video_are_not_independent():
    values = np.repeat((np.random.default_rng(1).random(200) < 0.5).astype(float), 10)
    shared_by_ten = [number // 10 for number in range(2000)]
    own, shared = (means(values, clusters)["all"].interval for clusters in (range(2000), shared_by_ten))
    assert (shared[1] - shared[0]) == pytest.approx(np.sqrt(10) * (own[1] - own[0]), rel=0.15)


def test_coverage():
    """About 38 of 40 intervals hold the true mean."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(40):
        rates = rng.beta(2, 2, 60)
        values = (rng.random((60, 3)) < rates[:, None]).astype(float).ravel()
        low, high = means(values, [number // 3 for number in range(180)])["all"].interval
        held += low <= 0.5 <= high
    assert held >= 34


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_any_values(rows):
    values, clusters, mask = (list(column) for column in zip(*rows, strict=True))
    found = means(values, clusters, some=mask)
    assert found == means(values, clusters, some=mask)
    assert found["all"].mean == pytest.approx(np.mean(values))
    assert found["some"].count == sum(mask)
    if not any(mask):
        assert (found["some"].mean, found["some"].interval) == (None, None)
    for mean in found.values():
        if mean.interval is not None:
            assert -1e-9 <= mean.interval[0] <= mean.interval[1] <= 1 + 1e-9
    if len(set(clusters)) < 2:
        assert found["all"].interval is None


def test_averages_weigh_their_groups():
    values = np.array([1.0] * 9 + [0.0])
    masks = {"big": np.arange(10) < 9, "small": np.arange(10) == 9}
    found = cluster_means(values, range(10), masks, seed=0, averages={"even": {"big": 1.0, "small": 1.0}})
    assert found["even"].mean == 0.5
    found = cluster_means(values, range(10), masks, seed=0, averages={"uneven": {"big": 3.0, "small": 1.0}})
    assert found["uneven"].mean == 0.75


def test_no_spread_is_not_certainty():
    nothing, everything = (means([value] * 20, range(20))["all"] for value in (0.0, 1.0))
    assert nothing.interval == (0.0, pytest.approx(0.168, abs=1e-3))  # Clopper and Pearson's, 0 of 20
    assert everything.interval == (pytest.approx(1 - 0.168, abs=1e-3), 1.0)
    masks = {"all": np.ones(20, bool)}
    assert cluster_means([0.0] * 20, range(20), masks, seed=0, shares=False)["all"].interval == (0.0, 0.0)


def test_independent_questions_give_mcnemars_test():
    """With one question to a cluster the flips are its coin tosses."""
    for only_a, only_b in ((0, 5), (5, 0), (3, 1), (5, 5), (7, 9)):
        differences = [-1.0] * only_a + [1.0] * only_b + [0.0] * 4
        expected = binomtest(only_a, only_a + only_b).pvalue
        assert sign_flip_p(differences, range(len(differences)), seed=0) == pytest.approx(expected, abs=1e-12)
    many = [-1.0] * 200 + [1.0] * 260
    assert sign_flip_p(many, range(460), seed=0) == pytest.approx(binomtest(200, 460).pvalue, abs=0.003)
    assert sign_flip_p([0.0] * 3, range(3), seed=0) == 1.0


def test_false_alarms_where_questions_share_videos():
    """288 videos with 18 questions, as VSI-Bench has them: two models alike but for luck with whole videos."""
    rng, videos, questions, rounds = np.random.default_rng(0), 288, 18, 200
    clusters = np.repeat(np.arange(videos), questions).tolist()
    alarms, of_mcnemar = 0, 0
    for seed in range(rounds):
        difficulty = rng.normal(0, 1, (videos, 1))
        chance = 1 / (1 + np.exp(-(difficulty + rng.normal(0, 0.7, (2, videos, 1)))))
        right = rng.random((2, videos, questions)) < chance
        difference = (right[1].astype(float) - right[0]).reshape(-1)
        alarms += sign_flip_p(difference, clusters, seed=seed) < 0.05
        of_mcnemar += binomtest(int((difference > 0).sum()), int((difference != 0).sum())).pvalue < 0.05
    assert alarms / rounds < 0.05 + 3 * np.sqrt(0.05 * 0.95 / rounds)
    assert of_mcnemar / rounds > 0.12  # the test without clusters fails here: this one can


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_one(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    subsets = list(itertools.combinations(correct, k))
    assert pass_at_k(correct, k) == pytest.approx(float(Fraction(sum(map(any, subsets)), len(subsets))), abs=1e-12)


def test_pass_at_k_is_unbiased_where_the_plain_estimate_is_not():
    """30,000 questions answered 8 times, each answer right with chance 0.2: 1 - 0.8^4. Four standard errors."""
    right = np.random.default_rng(0).random((30_000, 8)) < 0.2
    found = np.array([pass_at_k(row.tolist(), 4) for row in right])
    error = 4 * found.std() / np.sqrt(len(found))
    assert found.mean() == pytest.approx(1 - 0.8**4, abs=error)
    plain = 1 - (1 - right.mean(1)) ** 4
    assert abs(plain.mean() - (1 - 0.8**4)) > error


@pytest.mark.parametrize(
    ("predictions", "k", "expected"),
    [
        ("ABB", 3, 0.0),
        ("BAA", 3, 1.0),
        ("AB", 2, 1.0),  # the first drawn
        ("BA", 2, 0.0),
        (["", "", "A"], 3, 1.0),  # no answer, no vote
        (["", ""], 2, 0.0),
        ("ABAB", 1, 0.5),
        ("ABBA", 2, 0.5),  # two blocks
        ("AABBB", 2, 0.5),  # what fills no block is left out
    ],
)
def test_majority_at_k(predictions, k, expected):
    rewards = [1.0 if prediction == "A" else 0.0 for prediction in predictions]
    assert majority_at_k(list(predictions), rewards, k) == expected


def test_the_majority_has_its_own_reward():
    """Mean relative accuracy is neither 0 nor 1."""
    assert majority_at_k(["9", "10", "9"], [0.8, 1.0, 0.8], 3) == 0.8
