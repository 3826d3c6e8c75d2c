"""Scores of benchmark answers, by upstream's rules and by ours."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.evaluation import score_sample
from vr1_jax.evaluation.scoring import mean_relative_accuracy, mean_relative_accuracy_upstream, prediction


def sample(problem_type: str, truth: str) -> dict:
    return {"problem_type": problem_type, "solution": f"<answer>{truth}</answer>", "options": None}


# problem type, truth, output, upstream, fixed
CASES = [
    ("multiple choice", "B", "<think>x</think><answer>B</answer>", 1.0, 1.0),
    ("multiple choice", "B", "<answer>A</answer>", 0.0, 0.0),
    ("multiple choice", "B", " B\n", 1.0, 0.0),
    ("multiple choice", "B", "The answer is B", 0.0, 0.0),
    ("multiple choice", "B", "<answer></answer>", 0.0, 0.0),
    ("numerical", "5", "<answer>5</answer>", 1.0, 1.0),
    ("numerical", "5", "5", 1.0, 0.0),
    ("numerical", "5", "<answer>5.0</answer>", 0.0, 0.0),
    ("numerical", "3.14", "<answer>3.141</answer>", 1.0, 1.0),
    ("numerical", "5", "five", 0.0, 0.0),
    ("multiple choice", "B", "<answer> \n</answer>", 0.0, 0.0),
    ("multiple choice", "B", "<answer>\nB\n</answer>", 1.0, 1.0),
    ("multiple choice", "B", "<answer>B</answer><answer>A</answer>", 1.0, 1.0),
    ("multiple choice", "B", "<think><answer>A</answer></think><answer>B</answer>", 0.0, 1.0),
    ("multiple choice", "B", "<answer>B", 0.0, 0.0),
    ("multiple choice", "B", "<Answer>B</Answer>", 0.0, 0.0),
    ("multiple choice", "B", "<answer>B.</answer>", 0.0, 0.0),
    ("multiple choice", "B", "<answer>b</answer>", 0.0, 0.0),
    ("multiple choice", "B", "<answer>error</answer>", 0.0, 0.0),  # upstream's output of a batch that failed
    ("multiple choice", "G.", "<answer>G</answer>", 0.0, 1.0),
    ("multiple choice", "B", "", 0.0, 0.0),
    ("numerical", "1,000", "<answer>1000</answer>", 0.0, 0.0),
    ("numerical", "1,000", "<answer>1000.0</answer>", 1.0, 1.0),
    ("numerical", "-5", "<answer>-5</answer>", 1.0, 1.0),
    ("numerical", "2.675", "<answer>2.67</answer>", 1.0, 1.0),  # the float below 2.675 rounds down
    ("numerical", "5", "", 0.0, 0.0),
    ("OCR", "STOP", "STOP", 0.0, 0.0),
    ("OCR", "STOP", "<answer>STOP</answer>", 0.0, 1.0),
    ("free-form", "a red car", "<answer>a red car</answer>", 0.0, 1.0),
    ("regression", "10", "<answer>10</answer>", 1.0, 1.0),
    ("regression", "10", "10", 1.0, 0.0),
    ("regression", "10", "<answer>12.2</answer>", 0.6, 0.6),  # 22% off: within 25%, 30%, .. 50%
    ("regression", "10", "<answer>15.1</answer>", 0.0, 0.0),
    ("regression", "10", "<answer>nan</answer>", 0.0, 0.0),
    ("regression", "10", "<answer>inf</answer>", 0.0, 0.0),
    ("regression", "10", "<answer>1_0</answer>", 1.0, 0.0),
    ("regression", "10", "<answer>ten</answer>", 0.0, 0.0),
    ("regression", "10", "", 0.0, 0.0),
    ("regression", "0", "<answer>0</answer>", 1.0, 1.0),
    ("regression", "0", "<answer>0.1</answer>", 0.0, 0.0),
    ("regression", "ten", "<answer>10</answer>", 0.0, 0.0),
]


@pytest.mark.parametrize(("problem_type", "truth", "output", "upstream", "fixed"), CASES)
def test_scores(problem_type, truth, output, upstream, fixed):
    record = sample(problem_type, truth)
    assert score_sample(record, output, rules="upstream") == pytest.approx(upstream, abs=1e-7)
    assert score_sample(record, output, rules="fixed") == fixed
    assert score_sample(record, output) == fixed


def test_prediction():
    for output, upstream, fixed in (
        ("<answer> B </answer>", "B", "B"),
        ("<answer></answer>", "<answer></answer>", ""),
        (" B\n", " B\n", ""),
        ("<think><answer>A</answer></think>so <answer>B</answer>", "A", "B"),
    ):
        assert prediction(output, rules="upstream") == upstream
        assert prediction(output, rules="fixed") == fixed


@pytest.mark.parametrize("rules", ["fixed", "upstream"])
def test_an_unknown_problem_type_is_refused(rules):
    with pytest.raises(ValueError, match="'grounding'"):
        score_sample(sample("grounding", "1"), "<answer>1</answer>", rules=rules)


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="fixed, upstream"):
        score_sample(sample("OCR", "1"), "<answer>1</answer>", rules="strict")


@pytest.mark.parametrize("field", ["problem_type", "solution"])
@pytest.mark.parametrize("broken", [None, 3, "absent"])
def test_a_sample_without_its_fields_is_refused_by_field(field, broken):
    record = sample("OCR", "1")
    if broken == "absent":
        del record[field]
    else:
        record[field] = broken
    with pytest.raises(ValueError, match=field):
        score_sample(record, "<answer>1</answer>")


def torch_score(answer: float, truth: float) -> float:
    answer, truth = torch.tensor(answer, dtype=torch.float32), torch.tensor(truth, dtype=torch.float32)
    tolerances = 1 - torch.arange(0.5, 0.975, 0.05, dtype=torch.float32)
    return (((answer - truth).abs() / (truth.abs() + 1e-8)) < tolerances).float().mean().item()


@settings(deadline=None, max_examples=100)
@given(truth=st.floats(-1e40, 1e40), step=st.integers(0, 11), noise=st.sampled_from([0.0, 1e-7, -1e-7, 0.01]))
def test_upstream_rounds_as_torch_does(truth, step, noise):
    answer = truth * (1 + 0.05 * step + noise)
    assert mean_relative_accuracy_upstream(answer, truth) == torch_score(answer, truth)


def test_each_tolerance_is_exclusive_under_the_fixed_rules():
    for step in range(11):
        assert mean_relative_accuracy(100.0 + 5 * step, 100.0) == (10 - step) / 10
        assert mean_relative_accuracy(100.0 - 5 * step, 100.0) == (10 - step) / 10


@settings(deadline=None, max_examples=100)
@given(answer=st.floats(), truth=st.floats(allow_nan=False, allow_infinity=False))
def test_both_are_shares_of_ten(answer, truth):
    for score in (mean_relative_accuracy_upstream(answer, truth), mean_relative_accuracy(answer, truth)):
        assert math.isfinite(score)
        assert np.isclose(score * 10, round(score * 10))
        assert 0 <= score <= 1
