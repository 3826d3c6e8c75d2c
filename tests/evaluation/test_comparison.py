"""Differences between two results are put down to their causes, and add up."""

import copy
import json
import re

import pytest
from commands import load_command

from vr1_jax.errors import UserError
from vr1_jax.tools.compare import CAUSES, cause, compare, read_results

evaluate = load_command("scripts/evaluate.py")


def result(number: int, reward: float, **changes) -> dict:
    passport = {"prompt": "What?", "frames": [0, 4], "size": [56, 56], "grid": [1, 4, 4], "error": None}
    passport |= changes.pop("passport", {})
    return {
        "problem": f"question {number}",
        "path": f"./media/{number // 2}.mp4",
        "problem_type": "multiple choice",
        "solution": "<answer>A</answer>",
        "output": "<answer>A</answer>",
        "prediction": "A",
        "reward": reward,
        "correct": reward == 1.0,
        "passport": passport,
    } | changes


def file_of(results, **passport) -> dict:
    return {"results": results, "passport": passport}


PAIRS = {
    "broken in one": (result(0, 1.0), result(0, 0.0, output="", passport={"error": "gone", "frames": None})),
    "frames": (result(1, 1.0), result(1, 0.0, output="B", passport={"frames": [0, 5]})),
    "prompt": (result(2, 0.0), result(2, 1.0, output="B", passport={"prompt": "Which?"})),
    "extraction": (result(3, 1.0), result(3, 0.0, prediction="")),
    "output": (result(4, 0.0, output="B"), result(4, 1.0)),
    "none": (result(5, 1.0), result(5, 1.0)),
}


@pytest.mark.parametrize("expected", CAUSES)
def test_causes(expected):
    first, second = PAIRS[expected]
    assert cause(first, second) == cause(second, first) == expected


def test_the_whole():
    a, b = (file_of([pair[side] for pair in PAIRS.values()], seed=side, rules="fixed") for side in (0, 1))
    found = compare(a, b)
    assert {name: counts["samples"] for name, counts in found["causes"].items()} == dict.fromkeys(CAUSES, 1)
    assert sum(counts["difference"] for counts in found["causes"].values()) == pytest.approx(-1 / 6)
    assert found["difference"]["mean"] == pytest.approx(-1 / 6)
    low, high = found["difference"]["interval"]
    assert low < -1 / 6 < high
    right = {name: found["right"][name] for name in ("both", "only_a", "only_b", "neither")}
    assert right == {"both": 1, "only_a": 3, "only_b": 2, "neither": 0}
    assert found["settings"] == {"seed": [0, 1]}
    text = evaluate.comparison_table(found, ["one.json", "two.json"])
    for words in ("6 questions in both", "only in A 3", "-16.7", "broken in one", "seed: 0 in A, 1 in B"):
        assert words in text
    json.dumps(found, allow_nan=False)


def test_same_against_itself():
    a = file_of([pair[0] for pair in PAIRS.values()])
    found = compare(a, copy.deepcopy(a))
    assert found["difference"]["mean"] == 0.0
    assert found["causes"]["none"]["samples"] == 6
    assert (found["right"]["p"], found["settings"]) == (1.0, {})


def test_questions_are_matched_not_counted():
    results = [result(number, 1.0) for number in range(4)]
    moved = [dict(each, path=each["path"].replace("media", "elsewhere")) for each in reversed(results)]
    found = compare(file_of(results), file_of([*moved[1:], result(9, 1.0), moved[1]]))
    assert (found["samples"], found["only_in"]) == (3, {"a": 1, "b": 2})


def test_upstreams_own_files_have_no_passport():
    plain = [{k: v for k, v in side.items() if k != "passport"} for side in PAIRS["frames"]]
    assert cause(*plain) == "output"
    assert cause(plain[0], PAIRS["frames"][0]) == "none"
    assert compare({"results": plain[:1]}, {"results": plain[:1]})["samples"] == 1


def test_garbage(tmp_path):
    path = tmp_path / "x.json"
    for content in ("", "[]", "{}", '{"results": []}', '{"results": [1]}', '{"results": [{"reward": "x"}]}'):
        path.write_text(content)
        with pytest.raises(UserError, match=re.escape("x.json")):
            read_results(path)
    with pytest.raises(UserError, match="no question in common"):
        compare(file_of([result(0, 1.0)]), file_of([result(1, 1.0)]))
