"""The rules of every problem type, side by side: what upstream's code gives, and what ours gives instead."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.errors import UserError
from vr1_jax.rewards import accuracy_reward
from vr1_jax.rewards.accuracy import PROBLEM_TYPES, RULES


def reward(answer: str, truth: str, problem_type: str, rules: str) -> float:
    completion = f"<think>so</think>\n<answer>{answer}</answer>"
    return accuracy_reward(completion, f"<answer>{truth}</answer>", problem_type, rules=rules)


# answer, truth, score under both rules
AGREED = {
    "multiple choice": [
        ("B", "B", 1.0),
        (" B\n", "B", 1.0),
        ("A", "B", 0.0),
        ("b", "B", 0.0),
        ("B.", "B", 0.0),
        ("B. red", "B", 0.0),
        ("A, B", "B", 0.0),
        ("", "B", 0.0),
    ],
    "numerical": [
        ("5", "5", 1.0),
        ("-3", "-3", 1.0),
        ("+5", "5", 1.0),
        ("1e3", "1000", 1.0),
        ("3.14", "3.14", 1.0),
        ("3.1415", "3.14", 1.0),
        ("3.15", "3.14", 0.0),
        ("0.004", "0.001", 1.0),  # equal to two decimals
        ("5.0", "5", 0.0),  # one is written with a decimal mark, the other without
        ("1,000", "1000", 0.0),  # a comma counts as a mark
        ("1,000", "1,000", 1.0),
        ("1,234.5", "1234.5", 1.0),
        ("3,14", "3.14", 0.0),
        ("five", "5", 0.0),
        ("5 cm", "5", 0.0),
        ("$5", "5", 0.0),
        ("5%", "5", 0.0),
        ("2+3", "5", 0.0),
        ("", "5", 0.0),
        ("nan", "nan", 0.0),
        ("5", "five", 0.0),
    ],
    "OCR": [
        ("STOP", "STOP", 1.0),
        ("one two  three\nfour", "one two three four", 1.0),
        ("one two three", "one two three four", 0.75),
        ("one x three four", "one two three four", 0.75),
        ("one two three four five", "one two three four", 0.75),
        ("stop", "STOP", 0.0),
        ("a b c d e f g h i", "one two three four", 0.0),
        ("", "one two", 0.0),
    ],
    "free-form": [
        ("a red car", "a red car", 1.0),
        ("A RED CAR!", "a red car", 1.0),
        ("red cars", "red car", 1.0),  # stems: longer than three letters only
        ("the red car", "a red car", (2 / 3 + 1 / 2 + 2 / 3) / 3),
        ("blue bicycle", "a red car", 0.0),
        ("", "a red car", 0.0),
    ],
    "regression": [
        ("1", "2", 0.5),
        ("3", "2", 0.5),
        ("5", "2", 0.0),
        ("-2", "2", 0.0),
        ("1,000", "1000", 1.0),
        ("900", "1,000", 0.9),
        ("two", "2", 0.0),
        ("2 m", "2", 0.0),
        ("", "2", 0.0),
        ("2", "two", 0.0),
        ("1", "0", 0.0),
        ("inf", "2", 0.0),
    ],
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    ("problem_type", "answer", "truth", "expected"),
    [(problem_type, *case) for problem_type, cases in AGREED.items() for case in cases],
)
def test_both_rules_agree(problem_type, answer, truth, expected, rules):
    assert reward(answer, truth, problem_type, rules) == pytest.approx(expected, abs=1e-8)


# problem type, answer, truth, upstream, fixed
MENDED = [
    ("regression", "nan", "2", 1.0, 0.0),
    ("regression", "2", "nan", 1.0, 0.0),
    ("regression", "3", "inf", 1.0, 0.0),
    ("regression", "inf", "inf", 1.0, 0.0),
    ("regression", "0", "0", 0.0, 1.0),
    ("regression", "0.0", "0", 0.0, 1.0),
    ("regression", "2.5", "2.5", 1 - 1e-9 / (2.5 + 1e-9), 1.0),  # 0.9999999996
    ("regression", "1_000", "1000", 1 - 1e-9 / (1000 + 1e-9), 0.0),
    ("numerical", "1_000", "1000", 1.0, 0.0),
    ("numerical", "１２", "12", 1.0, 0.0),
    ("numerical", "١٢", "12", 1.0, 0.0),
    ("numerical", "inf", "1e999", 1.0, 0.0),
    ("numerical", "1,5", "15.0", 1.0, 0.0),
    ("numerical", "1,5", "1,5", 1.0, 0.0),
    ("multiple choice", "", "", 1.0, 0.0),
    ("OCR", "", "", 1.0, 0.0),
    ("multiple choice", "G", "G.", 0.0, 1.0),
    ("multiple choice", "G", "(G)", 0.0, 1.0),
    ("multiple choice", "G.", "G.", 1.0, 1.0),
    ("free-form", "红色", "红色", 0.0, 1.0),
    ("free-form", "蓝色", "红色", 0.0, 0.0),
]


@pytest.mark.parametrize(("problem_type", "answer", "truth", "upstream", "fixed"), MENDED)
def test_the_fixed_rules_mend_upstreams_quirks(problem_type, answer, truth, upstream, fixed):
    assert reward(answer, truth, problem_type, "upstream") == pytest.approx(upstream, abs=1e-15)
    assert reward(answer, truth, problem_type, "fixed") == fixed


def test_fixed_is_the_default():
    assert accuracy_reward("<answer>nan</answer>", "<answer>2</answer>", "regression") == 0.0


# completion, solution, upstream, fixed, for multiple choice
TAGS = [
    ("B", "<answer>B</answer>", 0.0, 0.0),
    ("<answer>B", "<answer>B</answer>", 0.0, 0.0),
    ("<ANSWER>B</ANSWER>", "<answer>B</answer>", 0.0, 0.0),
    ("</answer>B<answer>", "<answer>B</answer>", 0.0, 0.0),
    ("<answer>B</answer><answer>A</answer>", "<answer>B</answer>", 1.0, 1.0),
    ("<answer>A</answer><answer>B</answer>", "<answer>B</answer>", 0.0, 0.0),
    ("<answer><answer>B</answer></answer>", "<answer>B</answer>", 0.0, 0.0),
    ("<think>x</think><answer>B</answer>", "<answer>B</answer>", 1.0, 1.0),
    ("<answer>B</answer><think>x</think>", "<answer>B</answer>", 1.0, 1.0),
    ("x</think><answer>B</answer>", "<answer>B</answer>", 1.0, 1.0),
    ("<think><answer>B</answer></think><answer>A</answer>", "<answer>B</answer>", 1.0, 0.0),
    ("<think><answer>A</answer></think><answer>B</answer>", "<answer>B</answer>", 0.0, 1.0),
    ("<think><answer>B</answer></think>", "<answer>B</answer>", 1.0, 0.0),
    ("<answer>B</answer>", "B", 0.0, 1.0),
    ("no tags at all", "B", 1.0, 0.0),  # upstream: an empty answer equals an empty truth
]


@pytest.mark.parametrize(("completion", "solution", "upstream", "fixed"), TAGS)
def test_which_tag_counts(completion, solution, upstream, fixed):
    assert accuracy_reward(completion, solution, "multiple choice", rules="upstream") == upstream
    assert accuracy_reward(completion, solution, "multiple choice", rules="fixed") == fixed


@pytest.mark.parametrize("rules", RULES)
def test_an_unknown_problem_type_is_refused_by_name(rules):
    with pytest.raises(ValueError, match=r"'grounding'.*multiple choice, numerical, OCR, free-form, regression"):
        accuracy_reward("<answer>B</answer>", "<answer>B</answer>", "grounding", rules=rules)


@pytest.mark.parametrize("rules", ["", "FIXED", "paper"])
def test_unknown_rules_are_refused_by_name(rules):
    with pytest.raises(UserError, match="fixed, upstream"):
        accuracy_reward("<answer>B</answer>", "<answer>B</answer>", "OCR", rules=rules)


ANSWERS = st.one_of(
    st.text(max_size=60),
    st.floats().map(str),
    st.integers().map(str),
    st.text(alphabet="0123456789.,+-e_ ١５nainf%$", max_size=12),
    st.lists(st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", "A", " ", "1"])).map("".join),
)


@settings(deadline=None, max_examples=100)
@given(answer=ANSWERS, truth=ANSWERS, problem_type=st.sampled_from(PROBLEM_TYPES), rules=st.sampled_from(RULES))
def test_every_reward_is_finite_and_within_one(answer, truth, problem_type, rules):
    score = reward(answer, truth, problem_type, rules)
    assert isinstance(score, float)
    assert math.isfinite(score)
    assert 0.0 <= score <= 1.0


@settings(deadline=None, max_examples=50)
@given(truth=st.floats(allow_nan=False, allow_infinity=False))
def test_the_truth_itself_scores_one(truth):
    assert reward(str(truth), str(truth), "regression", "fixed") == 1.0
    assert reward(str(truth), str(truth), "numerical", "fixed") == 1.0


@settings(deadline=None, max_examples=50)
@given(truth=st.floats(0.01, 1e6), near=st.floats(0, 1), far=st.floats(0, 1))
def test_regression_pays_for_nearness(truth, near, far):
    near, far = sorted((near, far))
    assert reward(repr(truth * (1 + near)), repr(truth), "regression", "fixed") >= reward(
        repr(truth * (1 + far)), repr(truth), "regression", "fixed"
    )
