"""Answers that reached the limit: counted always, left out of the loss on request; what the format is worth."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.rl.experience import Read, judge, masked
from vr1_jax.types import Completion

RIGHT, PLAIN, WRONG = "<think>a</think><answer>4</answer>", "so <answer>4</answer>", "<think>a"


def judged(**settings):
    sample = SimpleNamespace(solution="<answer>4</answer>", problem_type="numerical", is_video=False)
    stopped = np.array([[True, True, False, True], [True, False, False, False]])
    read = Read([[RIGHT, PLAIN, WRONG, WRONG]] * 2, np.array([[60, 90, 100, 95]] * 2), stopped)
    return judge(GRPOConfig(**settings), [sample] * 2, read, None, limit=100)


def test_the_share_of_answers_without_an_end_is_always_among_the_metrics():
    assert judged().metrics["cut_off"] == pytest.approx(4 / 8)


def test_the_formats_weight():
    for weight in (0.0, 0.5, 1.0):
        np.testing.assert_array_equal(judged(format_weight=weight).signal.rewards, [[1 + weight, 1, 0, 0]] * 2)


def test_the_limit_reaches_the_penalty():
    np.testing.assert_allclose(judged(overlong=20).signal.rewards, [[2, 1 - 0.5, -1, -0.75]] * 2)


def test_masked_answers_have_no_tokens():
    ones = jnp.ones((2, 3, 4))
    stopped = jnp.array([[True, False, True], [False, True, True]])
    completion = Completion(ones.astype(int), ones > 0, ones, stopped)
    np.testing.assert_array_equal(masked(completion, stopped).mask.sum(-1), [[4, 0, 4], [0, 4, 4]])
    np.testing.assert_array_equal(
        masked(completion, jnp.array([[True], [False]])).mask.sum(-1), [[4] * 3, [0] * 3]
    )
