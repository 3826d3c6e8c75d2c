"""What an answer says, read by rule: tables of cases, and properties where there are any."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.tools.annotate.rules import (
    TAGS,
    MalformedAnswer,
    Rationale,
    contradiction,
    repeated_share,
    split_answer,
)

OPTIONS = ("A. red", "B. dark red", "C. blue", "D. two cats")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<think>a</think><answer>b</answer>", None),
        ("\n<think>\n a b\n</think>\n\n <answer> c </answer> \n", None),
        ("a</think><answer>b</answer>", "no <think>"),
        ("<think>a<answer>b</answer>", "no </think>"),
        ("<think>a</think>b", "no <answer>"),
        ("<think>a</think><answer>b", "no </answer>"),
        ("", "no <think>"),
        ("<answer>b</answer><think>a</think>", "another order"),
        ("<think><answer>b</answer></think>", "another order"),
        ("<think>a</think><think>a</think><answer>b</answer>", "more than one <think>"),
        ("<think>a</think><answer>b</answer><answer>b</answer>", "more than one <answer>"),
        ("So <think>a</think><answer>b</answer>", "outside"),
        ("<think>a</think> so <answer>b</answer>", "outside"),
        ("<think>a</think><answer>b</answer>.", "outside"),
        ("<think> \n</think><answer>b</answer>", "nothing between"),
        ("<think>a</think><answer></answer>", "nothing between"),
        ("<think>a\ufffd</think><answer>b</answer>", "broken character"),
    ],
)
def test_form(text, fault):
    if fault is None:
        found = split_answer(text)
        assert f"<think>{found.thought}</think><answer>{found.answer}</answer>" == "".join(text.split()).replace(
            "ab", "a b"
        )
    else:
        with pytest.raises(MalformedAnswer, match=fault):
            split_answer(text)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from((*TAGS, "a", " ", "\n", "<", "think>", "b")), max_size=9).map("".join))
def test_any_text_is_read_or_refused(text):
    try:
        found = split_answer(text)
    except MalformedAnswer:
        return
    assert found.thought.strip() == found.thought != ""
    assert not any(tag in found.thought + found.answer for tag in TAGS)
    assert found.process.startswith("<think>")


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0, 0),
        ("no no", 0, 0),
        ("Let me think. The ball falls, then it rolls left. Wait, let me check: it rolls left. So B.", 0, 0.1),
        ("I see a dog. " * 30, 0.9, 1),
        ("!" * 100, 0.9, 1),
        ("再看一遍视频。" * 20, 0.9, 1),
        ("The man opens the red door and walks in. " * 2, 0.3, 0.6),
    ],
)
def test_loops(text, least, most):
    assert least <= repeated_share(text, 5) <= most


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=80), st.integers(2, 5), st.integers(1, 6))
def test_repeating_never_lowers_the_share(text, times, length):
    assert 0 <= repeated_share(text, length) < 1
    assert repeated_share(f"{text} " * times, length) >= repeated_share(text, length)


@pytest.mark.parametrize(
    ("thought", "answer", "pair"),
    [
        ("It moves. So the answer is B.", "A", ("B", "A")),
        ("It moves. So the answer is B.", "B", None),
        ("The answer is A. Wait, it is darker. The correct answer is B.", "B", None),
        ("The answer is A. Wait, it is darker. The correct answer is B.", "A", ("B", "A")),
        ("**Final answer:** (C)", "A", ("C", "A")),
        ("**Final answer**: C", "A", ("C", "A")),
        ("Option C is correct.", "A", ("C", "A")),
        ("Option C is not correct.", "A", None),
        ("the answer is not C.", "A", None),
        ("If the answer is C, it must be blue.", "A", None),
        ("Is the answer C?", "A", None),
        ("Perhaps the answer is C.", "A", None),
        ("I'll go with option D because of the tails.", "A", ("D", "A")),
        ("\\boxed{B}", "A", ("B", "A")),
        ("The answer is blue.", "A", ("C", "A")),
        ("The answer is dark red.", "B", None),
        ("The answer is red.", "B", ("A", "B")),
        ("The answer is reddish.", "B", None),
        ("The answer is A dog.", "B", None),
        ("The answer is A.", "B", ("A", "B")),
        ("The answer is I think B.", "B", None),
        ("The answer is Z.", "A", None),
        ("The answer is two cats, the answer: B", "D", ("B", "D")),
        ("It is blue. Nothing else is said.", "A", None),
        ("The answer is B.", "(B)", None),
    ],
)
def test_a_choice_against_its_thought(thought, answer, pair):
    assert contradiction(Rationale(thought, answer), "multiple choice", OPTIONS) == pair


@pytest.mark.parametrize(
    ("thought", "answer", "kind", "differs"),
    [
        ("So the answer is 42.", "42", "numerical", False),
        ("So the answer is 42 apples.", "43", "numerical", True),
        ("The answer is 1,234.50", "1234.5", "numerical", False),
        ("The answer is $3.", "4", "numerical", True),
        ("The answer is three.", "4", "numerical", False),
        ("The answer is 42.", "many", "numerical", False),
        ("The answer is about 3.1 metres.", "3.2", "regression", False),
        ("The answer is about 3.1 metres.", "5", "regression", True),
        ("The answer is a cat.", "a dog", "free-form", False),
        ('The answer is "Main Street".', "MAIN  street", "OCR", False),
        ("The answer is STOP.", "POST", "OCR", True),
    ],
)
def test_a_number_against_its_thought(thought, answer, kind, differs):
    assert (contradiction(Rationale(thought, answer), kind) is not None) == differs


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="answer is:ABC.?() \n", max_size=60), st.sampled_from("ABCD"))
def test_any_thought_is_read(thought, answer):
    pair = contradiction(Rationale(thought, answer), "multiple choice", OPTIONS)
    assert pair is None or (pair[0] in "ABCD" and pair[0] != pair[1] == answer)
