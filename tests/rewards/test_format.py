"""The format reward: a whole-text match, without a regular expression that can blow up."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.rewards import format_reward


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>B</answer>", 1.0),
        ("<think>a\nb</think> \n\t <answer>B\n</answer>", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<think>a</think><answer>B</answer><answer>C</answer>", 1.0),
        ("<think>a</think><think>b</think><answer>B</answer>", 1.0),
        ("<think>a</think><answer>B</answer>\n", 0.0),
        (" <think>a</think><answer>B</answer>", 0.0),
        ("<think>a</think>so<answer>B</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>B</answer>", 0.0),
        ("<answer>B</answer><think>a</think>", 0.0),
        ("<think>a<answer>B</answer></think>", 0.0),
        ("<think>a<answer>B</answer>", 0.0),
        ("<THINK>a</THINK><ANSWER>B</ANSWER>", 0.0),
        ("<think></think><answer></answe", 0.0),
        ("<think></answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format(completion, expected):
    assert format_reward(completion) == expected


PIECES = ["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "\u2003", "x"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_it_is_the_full_match_of_the_two_blocks(text):
    blocks = re.fullmatch(r"(?s)<think>.*</think>\s*<answer>.*</answer>", text)
    assert format_reward(text) == float(blocks is not None)


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="ab \n", max_size=20), st.text(alphabet="ab \n", max_size=20))
def test_any_thought_and_any_answer_in_their_tags_are_well_formed(thought, answer):
    assert format_reward(f"<think>{thought}</think>\n<answer>{answer}</answer>") == 1.0
