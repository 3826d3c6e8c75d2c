"""What a model that hunts for reward can try, and what it gets; and that no text can make a reward slow.

Slowness is shown by counting what Python executes, not by a clock: the work may grow no faster than the text.
"""

import sys

import pytest

from vr1_jax.rewards import accuracy_reward, format_reward
from vr1_jax.rewards.accuracy import PROBLEM_TYPES, RULES

TRUTHS = {
    "multiple choice": "A",
    "numerical": "5",
    "OCR": "NO PARKING HERE",
    "free-form": "one red car",
    "regression": "5",
}

# answer -> the problem types that pay for it under the default rules, and how much; all others pay nothing
ATTACKS = {
    "A or B": {},
    "A B C D E F": {},
    "A\nB": {},
    "A.": {},
    "(A)": {},
    "a": {},
    "Ａ": {},  # full-width
    "А": {},  # Cyrillic
    "A. red": {"free-form": (2 / 5 + 0 + 2 / 5) / 3},
    "**A**": {},
    r"\boxed{A}": {},
    r"\boxed{5}": {},
    "$5$": {},
    "**5**": {},
    "5 cm": {},
    "$5": {},
    "5%": {},
    "5 or 6": {},
    "4..6": {},
    "0x5": {},
    "5e0": {"numerical": 1.0, "regression": 1.0},
    "5.0": {"regression": 1.0},
    "5,0": {},
    "5_": {},
    "٥": {},
    "５": {},
    "−5": {},
    "nan": {},
    "NaN": {},
    "inf": {},
    "-Infinity": {},
    "1e999": {},
    "0": {},
    "": {},
    "   \n\t ": {},
    "\u200b": {},
    "\x00": {},
    "</think>": {},
    "<think>5": {},
}


@pytest.mark.parametrize("answer", ATTACKS)
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_what_an_attack_earns(problem_type, answer):
    completion = f"<think>hm</think><answer>{answer}</answer>"
    earned = accuracy_reward(completion, f"<answer>{TRUTHS[problem_type]}</answer>", problem_type)
    assert earned == pytest.approx(ATTACKS[answer].get(problem_type, 0.0), abs=1e-9)


def test_repeating_the_transcript_earns_nothing():
    truth = TRUTHS["OCR"]
    assert accuracy_reward(f"<answer>{truth} {truth}</answer>", f"<answer>{truth}</answer>", "OCR") == 0.0


def test_repeating_a_sentence_earns_less():
    truth = TRUTHS["free-form"]
    earned = [accuracy_reward(f"<answer>{(truth + ' ') * n}</answer>", truth, "free-form") for n in (1, 2, 8)]
    assert earned[0] == 1.0 > earned[1] > earned[2]


# Each grows with n and would make a careless expression or comparison quadratic or worse.
BLOW_UPS = {
    "opening tags": lambda n: "<answer>" * n,
    "opening tags and blanks": lambda n: "<answer> " * n,
    "blanks in an open tag": lambda n: "<answer>" + " " * n,
    "blanks in a closed tag": lambda n: "<answer>" + " " * n + "x" + " " * n + "</answer>",
    "thoughts": lambda n: "<think>" * n + "</think>" * n,
    "seams": lambda n: "<think>" + "</think> " * n + "</answer>",
    "blanks at the seam": lambda n: "<think></think>" + " " * n + "</answer>",
    "digits": lambda n: f"<answer>{'9' * n}</answer>",
    "decimals": lambda n: f"<answer>0.{'3' * n}</answer>",
    "commas": lambda n: f"<answer>{'1,111' * n}</answer>",
    "thousands": lambda n: f"<answer>1{',111' * n}x</answer>",
    "exponent": lambda n: f"<answer>1e{'9' * n}</answer>",
    "words": lambda n: f"<answer>{'a ' * n}</answer>",
    "distinct words": lambda n: f"<answer>{' '.join(map(str, range(n)))}</answer>",
    "one word": lambda n: f"<answer>{'y' * n}</answer>",
    "dots": lambda n: f"<answer>{'a.' * n}</answer>",
    "letters outside ascii": lambda n: f"<answer>{'é' * n}</answer>",
}


def executed_lines(function) -> int:
    """How many lines of Python ran: a measure of work that no busy machine disturbs."""
    lines = 0

    def count(_frame, event, _arg):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        function()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("blow_up", BLOW_UPS)
@pytest.mark.parametrize("rules", RULES)
def test_a_megabyte_is_scored_by_every_reward(blow_up, rules):
    text = BLOW_UPS[blow_up](1_000_000)[:1_000_000]
    for problem_type, truth in TRUTHS.items():
        for completion in (text, text + "</answer>", f"<think>{text}</think><answer>{text}</answer>"):
            assert 0.0 <= accuracy_reward(completion, truth, problem_type, rules=rules) <= 1.0
            assert format_reward(completion) in (0.0, 1.0)


@pytest.mark.parametrize("blow_up", ["words", "distinct words", "dots", "one word", "opening tags"])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_beyond_the_caps_a_longer_answer_runs_no_more_python(problem_type, blow_up):
    def lines(n):
        completion = BLOW_UPS[blow_up](n) + "</answer>"
        return executed_lines(lambda: accuracy_reward(completion, TRUTHS[problem_type], problem_type))

    lines(10)  # imports and caches
    assert lines(80_000) <= 1.1 * lines(10_000) + 10
