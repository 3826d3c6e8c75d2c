"""Finds the answer in a completion and reads it: plain searches, linear in the length of the text.

A completion is written by a model that is paid for its score, so everything here takes any text whatsoever
and answers quickly. Regular expressions on whole completions are avoided: a lazy match between two
tags, retried at each of many opening tags, is quadratic.
"""

import math
import re

OPENING, CLOSING = "<answer>", "</answer>"

# 12, 12.5, .5, 5., 1,234.5, -3, 6.02e23
_NUMBER = re.compile(r"[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_LONGEST_NUMBER = 64
_LABEL = re.compile(r"\(?([A-Z])[).:]{1,2}", re.ASCII)


def tagged_answer(text: str) -> str:
    """What the first complete answer tag holds, stripped; empty when there is no complete tag.

    "a <answer> 42 </answer> b <answer>7</answer>" -> "42"
    """
    start = text.find(OPENING)
    end = text.find(CLOSING, start + len(OPENING)) if start >= 0 else -1
    return text[start + len(OPENING) : end].strip() if end >= 0 else ""


def final_answer(completion: str) -> str:
    """The first tagged answer outside the reasoning, which ends at the first closing think tag.

    "<think>perhaps <answer>A</answer></think><answer>B</answer>" -> "B"
    """
    end = completion.find("</think>")
    if end < 0:
        return tagged_answer(completion)
    start = completion.find("<think>", 0, end)
    before = completion[:start] if start >= 0 else ""  # some chat templates open the reasoning in the prompt
    return tagged_answer(before) or tagged_answer(completion[end:])


def true_answer(solution: str) -> str:
    """The answer that a record's solution gives: what its tag holds, or all of it when nothing is tagged."""
    return tagged_answer(solution) if OPENING in solution else solution.strip()


def option_letter(truth: str) -> str:
    """The bare letter of a labelled option, "G." or "(G)" -> "G"; any other text unchanged."""
    label = _LABEL.fullmatch(truth)
    return label.group(1) if label else truth


def python_number(text: str) -> float | None:
    """Whatever Python's float reads once all commas are gone: "nan", "1_000", "１２" and "1,5" (as 15)."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def plain_number(text: str) -> float | None:
    """A finite number in plain notation, commas only between thousands; anything else is None."""
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    number = float(text.replace(",", ""))
    return number if math.isfinite(number) else None


def has_decimal_mark(text: str) -> bool:
    """Whether the number is written with a point or a comma, even one between thousands."""
    return "." in text or "," in text
