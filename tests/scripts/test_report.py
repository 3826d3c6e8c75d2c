"""The command: one line for every mistake, nothing half written."""

import json

import pytest


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(8)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture
def command(load_command):
    return load_command("report").main


def test_writes_into_the_run_and_replaces_only_with_force(command, run, capsys):
    assert command([str(run)]) == 0
    assert "report.html: 8 steps" in capsys.readouterr().out
    first = (run / "report.html").read_bytes()
    assert command([str(run)]) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert command([str(run), "--force"]) == 0
    assert (run / "report.html").read_bytes() == first  # the same run, the same file


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{run}/nowhere"], 2, "no such directory"),
        (["{run}/metrics.jsonl"], 2, "not a directory"),
        (["{run}/.."], 1, "no metrics.jsonl in it; did you mean"),
        (["{run}", "--out", "{run}"], 2, "is a directory"),
        (["{run}", "--out", "{run}/metrics.jsonl/x"], 2, "is not a directory"),
        (["{run}", "--megabytes", "0"], 2, "must be above 0"),
        (["{run}", "--media-root", "nowhere"], 2, "no such directory"),
    ],
)
def test_mistakes_get_one_line(command, run, capsys, arguments, code, message):
    assert command([argument.format(run=run) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]
