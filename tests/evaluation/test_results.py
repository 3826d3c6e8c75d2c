"""Several answers to a question in the output file, against figures worked out by hand; one answer as ever."""

import pytest
from commands import load_command

from vr1_jax.evaluation.answering import kept
from vr1_jax.evaluation.benchmarks import recognise
from vr1_jax.evaluation.chat import Answer
from vr1_jax.evaluation.results import final_acc, result_of, summarize
from vr1_jax.tools.compare import cause

evaluate = load_command("scripts/evaluate.py")


def record(number: int) -> dict:
    return {
        "problem": f"question {number}",
        "path": f"./{number // 2}.mp4",
        "problem_type": "multiple choice",
        "options": ["A. this", "B. that"],
        "solution": "<answer>A</answer>",
        "samples": "a field of the record's own",
    }


def result(number: int, letters: str, error: str | None = None) -> dict:
    answers = [
        Answer(f"<answer>{x}</answer>" if x != "-" else "no", [1, 2], [-1.0, -1.0], x != "-") for x in letters
    ]
    found = {"error": error, "shown": {"prompt": "What?"}} | ({} if error else kept(answers))
    return result_of(record(number), found, "fixed")


ASKED = ("ABBB", "AABB", "BBBB", "AAA-", "----", "gone")


@pytest.fixture(scope="module")
def results():
    return [result(n, letters, "gone.mp4" if letters == "gone" else None) for n, letters in enumerate(ASKED)]


def summary_of(results, n):
    return summarize(results, recognise("eval_mvbench", results), "fixed", n)


def test_a_question_with_several_answers(results):
    first = results[0]
    assert (first["output"], first["prediction"], first["reward"]) == ("<answer>A</answer>", "A", 0.25)
    assert first["correct"] is False
    assert [one["reward"] for one in first["passport"]["samples"]] == [1.0, 0.0, 0.0, 0.0]
    assert first["samples"] == record(0)["samples"]


def test_the_figures(results):
    """Right of four: 1, 2, 0, 3, 0; and one question that could not be asked."""
    summary = summary_of(results, 4)
    assert summary["answers_each"] == 4
    assert summary["score"]["all"]["mean"] == pytest.approx((0.25 + 0.5 + 0.75) / 6)
    at_two = (1 - 3 / 6, 1 - 1 / 6, 0, 1, 0, 0)  # C(3, 2) and C(2, 2) of C(4, 2) pairs are all wrong
    expected = {"1": 1.5 / 6, "2": sum(at_two) / 6, "4": 3 / 6}
    assert {k: mean["mean"] for k, mean in summary["pass@k"].items()} == pytest.approx(expected)
    majority = {"1": 1.5 / 6, "2": (0.5 + 0.5 + 1) / 6, "4": 2 / 6}  # AABB: A was drawn first
    assert {k: mean["mean"] for k, mean in summary["maj@k"].items()} == pytest.approx(majority)
    assert (
        summary["pass@k"]["1"] == summary["score"]["all"]
    )  # with the same interval: clusters and draws are shared
    assert all(mean["count"] == 6 for mean in (*summary["pass@k"].values(), *summary["maj@k"].values()))
    assert summary["cut_short"] == 5
    assert summary["score_by_upstream_rules"] == pytest.approx(summary["score"]["all"]["mean"])


def test_the_table_shows_them(results):
    text = evaluate.result_table(summary_of(results, 4), final_acc(results), 16)
    for words in ("6 questions with 4 answers each", "pass@4", "maj@2", "5 answers cut short"):
        assert words in text


def test_one_answer_is_what_it_was():
    single = result(0, "A")
    assert single["passport"] == {"prompt": "What?", "answer_tokens": 2, "stopped": True, "error": None}
    assert (single["reward"], single["correct"]) == (1.0, True)
    summary = summary_of([single, result(1, "-")], 1)
    assert not {"answers_each", "pass@k", "maj@k"} & summary.keys()
    assert summary["cut_short"] == 1
    assert "answers each" not in evaluate.result_table(summary, final_acc([single]), 16)


def test_a_difference_in_a_later_answer_is_one_of_output():
    assert cause(result(0, "AAB"), result(0, "AAA")) == "output"
    assert cause(result(0, "AAB"), result(0, "AAB")) == "none"


def test_an_answer_without_numbers_is_an_error():
    assert "not finite" in kept([Answer("a", [1], [-1.0], True), Answer("b", [1], [float("nan")], True)])["error"]
