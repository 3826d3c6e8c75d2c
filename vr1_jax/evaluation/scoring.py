"""Scores one benchmark answer in [0, 1]: accuracy, or mean relative accuracy where the answer is a quantity.

case                      upstream                            fixed
------------------------  ----------------------------------  -----------------------------------------
no or empty answer tag    the whole output is the answer      0.0, as in training
OCR, free-form            0.0                                 the training reward (1 - WER, ROUGE)
regression                float32 thresholds and epsilon      exact thresholds, no epsilon
everything else           training reward, rules "upstream"   training reward, rules "fixed"
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vr1_jax.rewards import accuracy, answers


class ScoringError(ValueError):
    """A sample cannot be scored; the message names the field that is wrong."""


def score_sample(sample: Mapping[str, Any], output: str, *, rules: str = "fixed") -> float:
    """Accuracy of a model's output, or mean relative accuracy for a regression problem."""
    accuracy.check_rules(rules)
    problem_type, solution = (_text_field(sample, name) for name in ("problem_type", "solution"))
    if rules == "upstream":
        return _score_upstream(problem_type, solution, output)
    if problem_type == "regression":
        truth, answer = answers.true_answer(solution), answers.final_answer(output)
        return mean_relative_accuracy(answers.plain_number(answer), answers.plain_number(truth))
    return accuracy.accuracy_reward(output, solution, problem_type, rules=rules)


def prediction(output: str, *, rules: str = "fixed") -> str:
    """What of the output is taken for the answer. Upstream takes the whole of it where no tag holds anything."""
    accuracy.check_rules(rules)
    return (answers.tagged_answer(output) or output) if rules == "upstream" else answers.final_answer(output)


def mean_relative_accuracy(answer: float | None, truth: float | None) -> float:
    """Share of the ten tolerances 5%, 10%, .. 50% that the relative error stays below.

    These are the thresholds 0.95, 0.90, .. 0.50 of VSI-Bench. Against a truth of zero only zero is right.
    """
    if answer is None or truth is None:
        return 0.0
    if truth == 0:
        return float(answer == 0)
    error = abs(answer - truth) / abs(truth)
    return sum(error < step / 20 for step in range(1, 11)) / 10


def mean_relative_accuracy_upstream(answer: float | None, truth: float | None) -> float:
    """The same in float32 with upstream's epsilon, whose rounding decides cases at a tolerance's edge."""
    if answer is None or truth is None:
        return 0.0
    thresholds = (0.5 + 0.05 * np.arange(10)).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # inf and nan are answers too; their error is nan
        given, expected = np.float32(answer), np.float32(truth)
        error = np.abs(given - expected) / (np.abs(expected) + np.float32(1e-8))
    return float(np.mean(error < 1 - thresholds, dtype=np.float32))


def _score_upstream(problem_type: str, solution: str, output: str) -> float:
    if problem_type in ("OCR", "free-form"):
        return 0.0
    answer = prediction(output, rules="upstream").strip()
    truth = answers.tagged_answer(solution)
    if problem_type == "regression":
        return mean_relative_accuracy_upstream(answers.python_number(answer), answers.python_number(truth))
    return accuracy.score_answer(truth, answer, problem_type, rules="upstream")


def _text_field(sample: Mapping[str, Any], name: str) -> str:
    value = sample.get(name)
    if not isinstance(value, str):
        raise ScoringError(f"field {name!r} of the sample must be text, not {value!r}")
    return value
