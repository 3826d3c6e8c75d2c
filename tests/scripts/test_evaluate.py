"""The command as a user has it: a whole output, the same after any interruption; broken media; comparing."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vr1_jax.evaluation import answering
from vr1_jax.evaluation.run import journal_path, timing_path

LENGTH = 6
BROKEN, MISSING = 2, 22  # how many records cannot be asked, and which of them has no file


@pytest.fixture(scope="session")
def command(load_command):
    return load_command("evaluate")


@pytest.fixture(scope="module")
def annotations(small_world, tmp_path_factory) -> Path:
    """Images and texts mostly, for speed; two videos, one missing and one damaged; several on one file."""
    found = json.loads((small_world / "train.json").read_text())
    images = [record for record in found if record["data_type"] == "image"]
    video = next(record for record in found if record["data_type"] == "video")
    (small_world / "media" / "damaged.mp4").write_bytes(b"no video at all")
    records = [dict(images[number % 2]) for number in range(20)]
    records += [dict(video), dict(video, path="./damaged.mp4"), dict(video, path="./missing.mp4"), dict(video)]
    records += [dict(images[0], data_type="text", path="") for _ in range(8)]
    for number, record in enumerate(records):
        record |= {"problem_id": number, "problem": record["problem"] + "!" * (number % 3)}
        if record["path"] == "./missing.mp4":
            record |= {"note": "half a pair: \ud800", "nan": float("nan")}  # JSON as Python writes it
        if number % 5 == 0:
            record |= {"problem_type": "regression", "options": None, "solution": "<answer>4</answer>"}
    path = tmp_path_factory.mktemp("annotations") / "eval_tempcompass.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def arguments(tiny_model, small_world, annotations):
    def make(out: Path, *more) -> list[str]:
        usual = ["--model", tiny_model, "--annotations", annotations, "--media-root", small_world / "media"]
        settings = ["--frames", 2, "--max-new-tokens", LENGTH, "--rows", 1, "--workers", 1]
        return [str(word) for word in (*usual, *settings, "--out", out, *more)]

    return make


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks, so that there is a finished one to go on after."""
    monkeypatch.setattr(answering, "MOST_IN_CHUNK", 12)
    monkeypatch.setattr(answering, "LEAST_IN_CHUNK", 12)


@pytest.fixture
def evaluate(command, arguments, small_chunks, capsys):
    def call(out: Path, *more, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert command.main(arguments(out, *more)) == code
        return capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The uninterrupted run's path and text, once it has been made."""
    return {"out": tmp_path_factory.mktemp("whole") / "whole.json"}


def finished(whole, evaluate) -> Path:
    if "printed" not in whole:
        whole["printed"] = evaluate(whole["out"])
    return whole["out"]


def test_the_output(evaluate, whole, annotations):
    out = finished(whole, evaluate)
    content, records = json.loads(out.read_text()), json.loads(annotations.read_text())
    results = content["results"]
    assert list(content) == ["results", "final_acc", "summary", "passport"]
    assert math.isnan(records[MISSING].pop("nan"))
    records[MISSING]["note"] = "half a pair: ?"
    for result, record in zip(results, records, strict=True):
        assert {name: result[name] for name in record} == record
    for result in results:
        assert result["correct"] == (result["reward"] == 1.0)
        shown = result["passport"]
        if shown["error"] is not None:
            assert (result["output"], result["reward"]) == ("", 0.0)
            continue
        assert result["problem"] in shown["prompt"]
        assert shown["answer_tokens"] <= LENGTH
        assert shown["prompt_tokens"] > 50
        if result["data_type"] == "video":
            assert (shown["frames"], shown["grid"][0]) == ([0, 7], 1)
        assert ("size" in shown) == (result["data_type"] != "text")
    errors = [result["passport"]["error"] for result in results if result["passport"]["error"]]
    assert len(errors) == content["summary"]["broken"] == BROKEN
    assert "damaged.mp4" in errors[0]
    assert "missing.mp4" in errors[1]
    summary = content["summary"]
    assert (summary["benchmark"], summary["samples"]) == ("TempCompass", len(records))
    assert summary["score"]["answered"]["count"] == len(records) - BROKEN
    assert {name: mean["count"] for name, mean in summary["by"]["problem_type"].items()}["regression"] == 7
    passport = content["passport"]
    assert passport["decoding"]["top_p"] == 0.001
    assert len(passport["model"]["weights_sha256"]) == 64
    assert "jax" in passport["versions"]
    assert not journal_path(out).exists()
    timing = json.loads(timing_path(out).read_text())
    assert 0 <= timing["share_waiting_for_media"] <= 1
    printed, complained = whole["printed"]
    assert "cannot be asked and will count as wrong: 1" in complained
    for words in ("TempCompass", "2 broken", "Video-R1-7B", "arXiv 2503.21776", "waiting for media"):
        assert words in printed


def test_stopped_at_any_batch_it_ends_with_the_same_bytes(evaluate, whole, tmp_path, monkeypatch):
    expected, out = finished(whole, evaluate).read_bytes(), tmp_path / "out.json"
    computed, allowed = [], [0]
    whole_batch = answering.batch_answers

    def stopping(chat, prompts, numbers, *rest, **more):
        if not allowed[0]:
            raise KeyboardInterrupt
        allowed[0] -= 1
        computed.append(tuple(numbers))
        return whole_batch(chat, prompts, numbers, *rest, **more)

    monkeypatch.setattr(answering, "batch_answers", stopping)
    for batches in (1, 2, 1):
        allowed[0] = batches
        _, error = evaluate(out, code=130)
        assert "goes on where it was" in error
        assert not out.exists()
        with journal_path(out).open("ab") as file:
            file.write(b'{"number": 3, "result": {"half a li')  # what kill -9 may leave
    allowed[0] = 1000
    evaluate(out)
    assert out.read_bytes() == expected
    assert len(set(computed)) == len(computed)  # no batch twice
    assert sum(map(len, computed)) == len(json.loads(expected)["results"]) - BROKEN


def test_killed_it_ends_with_the_same_bytes(command, arguments, whole, evaluate, tmp_path):
    expected, out = finished(whole, evaluate).read_bytes(), tmp_path / "out.json"
    program = (
        "import runpy, sys; from vr1_jax.evaluation import answering\n"
        "answering.MOST_IN_CHUNK = answering.LEAST_IN_CHUNK = 12\n"
        f"sys.argv[0] = {command.__file__!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *arguments(out)], stderr=subprocess.DEVNULL)
    while not (journal_path(out).exists() and journal_path(out).read_bytes().count(b"\n") > 4):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    known = journal_path(out).read_bytes().count(b"\n")
    assert 4 < known < 30
    evaluate(out)
    assert out.read_bytes() == expected


def test_other_settings_do_not_mix(evaluate, whole, tmp_path, monkeypatch):
    expected, out = finished(whole, evaluate).read_bytes(), tmp_path / "out.json"

    whole_batch, done = answering.batch_answers, []

    def once(*arguments, **settings):
        if done:
            raise KeyboardInterrupt
        done.append(True)
        return whole_batch(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(answering, "batch_answers", once)
        evaluate(out, "--seed", 7, "--temperature", 0.5, code=130)
    before = journal_path(out).read_bytes()
    _, error = evaluate(out, code=2)
    assert "seed 7, not 0" in error
    assert "decoding.temperature 0.5, not 0.01" in error
    assert error.count("\n") == 2 + 1  # the records that cannot be asked, then the refusal
    assert journal_path(out).read_bytes() == before
    evaluate(out, "--force")
    assert out.read_bytes() == expected
    _, error = evaluate(out, code=2)
    assert "--force" in error


def test_several_answers_to_each_question(evaluate, whole, tmp_path):
    """Four drawn answers; with fewer questions the same ones, for they depend on the question's number."""
    out, fewer = tmp_path / "out.json", tmp_path / "fewer.json"
    drawn = ("--samples", 4, "--temperature", 1.0, "--top-p", 1.0)
    printed, _ = evaluate(out, *drawn, "--limit", 6)
    evaluate(fewer, *drawn, "--limit", 2)
    content, few = (json.loads(path.read_text()) for path in (out, fewer))
    assert content["passport"]["samples"] == 4
    assert content["results"][:2] == few["results"]
    for result in content["results"]:
        samples = result["passport"]["samples"]
        assert len(samples) == 4
        assert len({sample["output"] for sample in samples}) > 1
        assert result["reward"] == sum(sample["reward"] for sample in samples) / 4
    assert list(content["summary"]["pass@k"]) == list(content["summary"]["maj@k"]) == ["1", "2", "4"]
    assert "pass@4" in printed
    assert json.loads(finished(whole, evaluate).read_text())["passport"]["samples"] == 1


def test_rules_change_scores_not_answers(evaluate, whole, tmp_path, command, capsys):
    first, out = finished(whole, evaluate), tmp_path / "out.json"
    evaluate(out, "--rules", "upstream", "--limit", 21)
    a, b = (json.loads(path.read_text())["results"] for path in (first, out))
    assert [result["output"] for result in a[:21]] == [result["output"] for result in b]
    assert command.main(["--compare", str(first), str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("21 questions in both", "11 questions only in A", "extraction", "rules: fixed in A, upstream"):
        assert words in printed
    assert command.main(["--compare", str(first), str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"]["mean"] == 0.0


def test_wrong_usage(command, arguments, tmp_path, annotations, capsys):
    for words, reason in (
        ([], "--model, --annotations"),
        (["--compare", "a"], "takes two outputs"),
        (arguments(tmp_path / "x")[2:], "required: --model"),
        (arguments(tmp_path / "x", "--json"), "--compare"),
        (arguments(tmp_path / "x", "--limit", 0), "--limit"),
        (arguments(tmp_path / "x", "--samples", 0), "--samples"),
        (arguments(tmp_path / "x", "--samples", 2, "--greedy"), "the same answer 2 times"),
        (arguments(tmp_path / "x", "--temperature", "nan"), "finite"),
        (arguments(tmp_path / "x", "--rules", "strict"), "invalid choice"),
    ):
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
    for more, reason in (
        (["--frames", 1], "--frames"),
        (["--top-p", 2], "top_p"),
        (["--media-root", tmp_path / "nowhere"], "nowhere"),
        (["--out", annotations], "would replace"),
        (["--out", tmp_path], "is a directory"),
        (["--tensor", 3], "3"),
    ):
        assert command.main(arguments(tmp_path / "x", *more)) == 2
        error = capsys.readouterr().err
        assert reason in error.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_garbage(command, arguments, tmp_path, annotations, capsys):
    garbage, nothing_there = tmp_path / "garbage.json", tmp_path / "nothing_there.json"
    garbage.write_bytes(b"\x89PNG nothing of the kind")
    nothing_there.write_text(json.dumps([dict(json.loads(annotations.read_text())[0], path="no.png")]))
    for more, reason in (
        (["--annotations", garbage], "garbage.json"),
        (["--annotations", tmp_path / "none"], "none"),
        (["--annotations", nothing_there], "no record can be asked"),
        (["--model", tmp_path], "no tokenizer.json"),
        (["--model", tmp_path / "none"], "none"),
    ):
        assert command.main(arguments(tmp_path / "x", *more)) == 1
        error = capsys.readouterr().err
        assert reason in error.splitlines()[-1]
        assert "Traceback" not in error
    assert command.main(["--compare", str(garbage), str(annotations)]) == 1
    assert "garbage.json" in capsys.readouterr().err
    assert command.main(["--compare", str(tmp_path / "none"), str(annotations)]) == 1
    assert not (tmp_path / "x").exists()


def test_help_is_quick(command):
    watch = f"""
import runpy, sys
sys.argv = ["evaluate", "--help"]
try:
    runpy.run_path({command.__file__!r}, run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0
assert not {{"numpy", "jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
