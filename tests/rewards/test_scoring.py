"""Scores of a batch, and the rewards that users add."""

from types import SimpleNamespace

import numpy as np
import pytest

from vr1_jax.errors import UserError
from vr1_jax.rewards import score_groups

SAMPLES = [
    SimpleNamespace(solution="<answer>B</answer>", problem_type="multiple choice"),
    SimpleNamespace(solution="<answer>2</answer>", problem_type="regression"),
]
COMPLETIONS = [
    ["<think>x</think><answer>B</answer>", "<answer>B</answer>", "B"],
    ["<think>x</think><answer>1</answer>", "<answer>nan</answer>", "<answer>2</answer>"],
]


def brevity(completion: str, sample) -> float:
    return 0.5 if len(completion) < 20 else 0.0


def is_choice(completion: str, sample) -> float:
    return float(sample.problem_type == "multiple choice")


def test_every_sample_is_scored_by_its_own_problem_type():
    scores = score_groups(COMPLETIONS, SAMPLES)
    np.testing.assert_array_equal(scores.accuracy, [[1, 1, 0], [0.5, 0, 1]])
    np.testing.assert_array_equal(scores.format, [[1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(scores.accuracy + scores.other(), [[2, 1, 0], [1.5, 0, 1]])


def test_the_rules_reach_every_score():
    assert score_groups(COMPLETIONS, SAMPLES, rules="upstream").accuracy[1, 1] == 1.0


def test_user_rewards_are_added_and_kept_by_name():
    scores = score_groups(COMPLETIONS, SAMPLES, rewards=[brevity, is_choice])
    np.testing.assert_array_equal(scores.extra["brevity"], [[0, 0.5, 0.5], [0, 0, 0.5]])
    np.testing.assert_array_equal(scores.extra["is_choice"], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(scores.accuracy + scores.other(), [[3, 2.5, 1.5], [1.5, 0, 1.5]])


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(UserError, match="'brevity'"):
        score_groups(COMPLETIONS, SAMPLES, rewards=[brevity, brevity])


def test_a_reward_that_is_not_finite_is_refused_by_name():
    def broken(completion, sample):
        return float("nan")

    with pytest.raises(UserError, match="'broken' returned nan"):
        score_groups(COMPLETIONS, SAMPLES, rewards=[broken])


def test_a_users_own_error_is_not_swallowed():
    def buggy(completion, sample):
        raise KeyError("missing")

    with pytest.raises(KeyError):
        score_groups(COMPLETIONS, SAMPLES, rewards=[buggy])


def test_groups_and_samples_must_match():
    with pytest.raises(UserError, match="2 groups of completions for 1 samples"):
        score_groups(COMPLETIONS, SAMPLES[:1])
