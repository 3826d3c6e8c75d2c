"""Word error rate and ROUGE against small independent computations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from vr1_jax.rewards import accuracy
from vr1_jax.rewards.accuracy import MAX_ROUGE_WORDS, rouge, word_accuracy

WORDS = st.lists(st.sampled_from(["a", "b", "c", "running", "runs", "x,y"]), max_size=8).map(" ".join)


def edit_distance(left: list[str], right: list[str]) -> int:
    """By its recursive definition, one row of the table at a time."""
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


@settings(deadline=None, max_examples=100)
@given(truth=WORDS, text=WORDS)
def test_word_accuracy_is_one_minus_the_edit_distance_per_word(truth, text):
    errors = edit_distance(truth.split(), text.split())
    expected = max(0.0, 1 - errors / max(1, len(truth.split())))
    assert word_accuracy(truth, text) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(truth=WORDS, text=WORDS)
def test_rouge_is_the_mean_of_three_f_measures(truth, text):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    expected = sum(score.fmeasure for score in scorer.score(truth, text).values()) / 3
    assert rouge(truth, text) == pytest.approx(expected, abs=1e-12)


def test_rouge_reads_a_bounded_number_of_words():
    words = [f"w{i}" for i in range(MAX_ROUGE_WORDS)]
    text = " ".join(words)
    assert rouge("w1 w2", text + " w1 w2") == rouge("w1 w2", text)
    assert rouge("w1 w2", " ".join(words[:-1])) != rouge("w1 w2", text)


def test_word_accuracy_does_not_look_at_answers_that_cannot_score(monkeypatch):
    def refuse(*_):
        raise AssertionError("the quadratic comparison was reached")

    monkeypatch.setattr("jiwer.wer", refuse)
    assert word_accuracy("one two", "x " * 500_000) == 0.0
    with pytest.raises(AssertionError):
        word_accuracy("one two", "one three")


def test_rouge_sees_no_words_in_other_scripts():
    assert not accuracy.has_rouge_words("红色 красный")
    assert accuracy.has_rouge_words("红色 red")
