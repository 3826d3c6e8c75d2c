"""Which drafts are kept: every rule by an answer that breaks nothing else, and what holds for any drafts."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.data.records import parse_record
from vr1_jax.errors import UsageError
from vr1_jax.tools.annotate.rules import REASONS, Draft, Keeper, KeepRules, NearDuplicates

RULES = KeepRules(min_tokens=4, max_tokens=50)
THOUGHT = "The ball is left at first, then it comes to rest at the right. So the answer is B."


def sample(index=0, problem="Where does the ball end?", **changes):
    record = {
        "problem": problem,
        "data_type": "text",
        "problem_type": "multiple choice",
        "options": ["A. left", "B. right"],
        "solution": "<answer>B</answer>",
    }
    return parse_record(record | changes, index=index)


def draft(thought=THOUGHT, answer="B", **changes):
    text = f"<think>{thought}</think>\n<answer>{answer}</answer>"
    return dataclasses.replace(Draft(text, 30, len(thought.split()), stopped=True), **changes)


def reasons(drafts, rules=RULES, asked=None):
    return [verdict.reason for verdict in Keeper(rules).judge(asked or sample(), drafts)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (draft(), None),
        (draft(stopped=False), "unfinished"),
        (draft(text=f"{THOUGHT} <answer>B</answer>"), "format"),
        (draft(answer="A"), "reward"),
        (draft(thought_tokens=3), "length"),
        (draft(thought_tokens=51), "length"),
        (draft("I look at the ball again. " * 6), "loop"),
        (draft(THOUGHT.replace("is B", "is A")), "contradiction"),
    ],
)
def test_each_rule_alone(given, reason):
    assert reasons([given]) == [reason]
    if reason is not None:  # the sensitivity of the test: whatever is wrong, a good one beside it is kept
        assert reasons([given, draft()]) == [reason, None]


def test_rules_can_be_turned_off():
    off = dataclasses.replace(
        RULES, max_repeated=None, max_similarity=None, check_conclusion=False, max_per_record=9, min_reward=0.0
    )
    drafts = [draft("I look at the ball again. " * 6), draft(THOUGHT.replace("is B", "is A")), draft(), draft()]
    assert reasons([*drafts, draft(answer="A")], off) == [None] * 5


def test_the_best_rewarded_is_kept_and_the_first_of_equals():
    asked = sample(problem_type="regression", options=[], solution="<answer>100</answer>")
    thoughts = ["It is far away, I guess.", "Four steps from door to wall.", "As wide as two cars side by side."]
    drafts = [draft(thought, answer) for thought, answer in zip(thoughts, ("80", "95", "95"), strict=True)]
    assert reasons(drafts, asked=asked) == ["surplus", None, "surplus"]
    two = dataclasses.replace(RULES, max_per_record=2)
    assert reasons(drafts, two, asked) == ["surplus", None, None]


def test_duplicates_are_of_the_same_question():
    keeper, changed = Keeper(RULES), THOUGHT.replace("comes", "rolls")
    assert keeper.judge(sample(0), [draft()])[0].reason is None
    again = keeper.judge(sample(1), [draft(THOUGHT.upper().replace("ANSWER IS B", "ANSWER IS B !"))])[0]
    assert (again.reason, again.detail) == ("duplicate", "says the same as answer 0 to record 0")
    assert keeper.judge(sample(2), [draft(changed)])[0].reason is None  # three of 17 runs differ
    assert keeper.judge(sample(3, "Where does it start?"), [draft()])[0].reason is None


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=25).map(" ".join)


@settings(deadline=None, max_examples=100)
@given(st.lists(WORDS, max_size=8), st.sampled_from((0.3, 0.5, 0.9, 1.0)))
def test_no_near_duplicate_is_overlooked(thoughts, threshold):
    """The index finds exactly what comparing with all of them finds."""
    known, seen = NearDuplicates(threshold), []
    for number, thought in enumerate(thoughts):
        words = thought.split()
        runs = {tuple(words[n : n + 3]) for n in range(max(1, len(words) - 2))}
        twins = [name for name, theirs in seen if len(runs & theirs) / len(runs | theirs) >= threshold]
        found = known.find_or_add("Why?", thought, str(number))
        assert found == (twins[0] if twins else None)
        if not twins:
            seen.append((str(number), runs))


DRAFTS = st.lists(
    st.builds(
        draft,
        st.sampled_from((THOUGHT, "I see a ball that rolls. " * 2, "The answer is A because it ends there.")),
        st.sampled_from(("A", "B", "")),
        thought_tokens=st.integers(0, 60),
        stopped=st.booleans(),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=100)
@given(st.lists(DRAFTS, max_size=4), st.integers(1, 3))
def test_what_holds_for_any_drafts(records, most):
    keeper = Keeper(dataclasses.replace(RULES, max_per_record=most))
    for index, drafts in enumerate(records):
        verdicts = keeper.judge(sample(index), drafts)
        assert len(verdicts) == len(drafts)
        assert all(verdict.reason in (None, *REASONS) for verdict in verdicts)
        kept = [verdict for verdict in verdicts if verdict.reason is None]
        assert len(kept) <= most
        assert all(verdict.reward >= RULES.min_reward and verdict.rationale for verdict in kept)
        assert all(verdict.detail for verdict in verdicts if verdict.reason is not None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_reward", 1.5), ("max_similarity", -1.0), ("min_tokens", -1), ("max_tokens", 2), ("loop_words", 0)],
)
def test_rules_that_make_no_sense_are_refused(field, value):
    with pytest.raises(UsageError, match=field):
        KeepRules(**{field: value})
