"""The two commands from the outside: exit codes, one line an error, nothing half-written."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import load_command
from published_models import differences, tensors_of

from vr1_jax.weights.hf_directory import HFDirectory, ShardWriter

CONVERT = Path(__file__).resolve().parents[2] / "convert"


hf_to_flax = load_command("convert/hf_to_flax.py").main
flax_to_hf = load_command("convert/flax_to_hf.py").main


@pytest.fixture
def fails(capsys, tmp_path):
    """Runs a command that must fail with a code and one line, and leave the directory as it was."""

    def check(main, arguments, code, *words):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        errors = [line for line in capsys.readouterr().err.splitlines() if "%" not in line]  # no progress
        assert len(errors) == 1
        assert errors[0].startswith(f"{main.__module__}: ")
        for word in words:
            assert word in errors[0]
        assert sorted(tmp_path.rglob("*")) == before

    return check


def test_there_and_back(published, tmp_path, capsys):
    source = published()
    capsys.readouterr()  # what making the model printed
    assert hf_to_flax(["--hf", str(source), "--out", str(tmp_path / "ours")]) == 0
    arguments = ["--checkpoint", str(tmp_path / "ours"), "--out", str(tmp_path / "back")]
    assert flax_to_hf([*arguments, "--max-shard-size", "100KB"]) == 0
    assert differences(source, tmp_path / "back") == []
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"wrote {tmp_path / 'ours'}", f"wrote {tmp_path / 'back'}"]
    assert "converting: 100%" in err
    assert "\r" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ours"]


def test_as_a_user_runs_them(published, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], cwd=CONVERT.parent, capture_output=True, text=True)

    done = run("convert/hf_to_flax.py", "--hf", published(), "--out", tmp_path / "ours", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    export = ["--checkpoint", tmp_path / "ours", "--out", tmp_path / "back", "--step", "0"]
    done = run("convert/flax_to_hf.py", *export)
    assert done.returncode == 0, done.stderr
    assert differences(published(), tmp_path / "back") == []


@pytest.mark.parametrize("name", ["hf_to_flax", "flax_to_hf"])
def test_help_is_quick(name):
    started = time.perf_counter()
    done = subprocess.run([sys.executable, CONVERT / f"{name}.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--force" in done.stdout
    assert time.perf_counter() - started < 1
    program = (
        f"import runpy, sys; runpy.run_path({str(CONVERT / name) + '.py'!r}); assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (hf_to_flax, ["--hf", "/does/not/exist", "--out", "x"]),
        (hf_to_flax, ["--hf", ".", "--out", "x", "--dtype", "int8"]),
        (hf_to_flax, []),
        (flax_to_hf, ["--checkpoint", ".", "--out", "x", "--max-shard-size", "5 apples"]),
        (flax_to_hf, ["--checkpoint", ".", "--out", "x", "--max-shard-size", "0GB"]),
        (flax_to_hf, ["--checkpoint", ".", "--out", "x", "--step", "last"]),
    ],
)
def test_wrong_usage(main, arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bad_checkpoints(fails, altered, published, tmp_path):
    damaged = altered() / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    fails(hf_to_flax, ["--hf", damaged.parent, "--out", tmp_path / "out"], 1, "model.safetensors", "truncated")
    (tmp_path / "empty").mkdir()
    fails(hf_to_flax, ["--hf", tmp_path / "empty", "--out", tmp_path / "out"], 1, "no config.json")
    fails(flax_to_hf, ["--checkpoint", published(), "--out", tmp_path / "out"], 1, "not a checkpoint directory")
    assert hf_to_flax(["--hf", str(published()), "--out", str(tmp_path / "ours")]) == 0
    arguments = ["--checkpoint", tmp_path / "ours", "--out", tmp_path / "out"]
    fails(flax_to_hf, [*arguments, "--step", 7], 1, "no step 7")
    chunk = tmp_path / "ours/checkpoints/0/params/text.norm/c/0"
    chunk.unlink()
    fails(flax_to_hf, arguments, 1, "text.norm")


def test_existing_output(fails, published, tmp_path):
    arguments = ["--hf", str(published()), "--out", str(tmp_path / "ours")]
    assert hf_to_flax(arguments) == 0
    fails(hf_to_flax, arguments, 2, "--force")
    assert hf_to_flax([*arguments, "--force", "--dtype", "float32"]) == 0
    assert json.loads((tmp_path / "ours" / "meta.json").read_text())["dtype"] == "float32"
    export = ["--checkpoint", str(tmp_path / "ours"), "--out", str(tmp_path / "back")]
    assert flax_to_hf([*export, "--max-shard-size", "100KB"]) == 0
    assert flax_to_hf([*export, "--force"]) == 0
    assert [file.name for file in (tmp_path / "back").glob("model*")] == ["model.safetensors"]
    (tmp_path / "back" / "my_notes.txt").touch()
    fails(flax_to_hf, [*export, "--force"], 2, "other files")
    fails(flax_to_hf, [*export[:3], str(tmp_path / "ours"), "--force"], 2, "being converted")


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ValueError(f"RESOURCE_EXHAUSTED: Failed to write file [OS error 28: {os.strerror(errno.ENOSPC)}]"),
]


@pytest.mark.parametrize("error", FULL, ids=["system", "tensorstore"])
def test_full_disk(fails, published, tmp_path, monkeypatch, error):
    assert hf_to_flax(["--hf", str(published()), "--out", str(tmp_path / "ours")]) == 0
    monkeypatch.setattr(HFDirectory, "read", after(60, HFDirectory.read, error))
    fails(hf_to_flax, ["--hf", published(), "--out", tmp_path / "out"], 1, "disk is full")
    monkeypatch.setattr(ShardWriter, "write", after(60, ShardWriter.write, error))
    fails(flax_to_hf, ["--checkpoint", tmp_path / "ours", "--out", tmp_path / "out"], 1, "disk is full")


def test_interrupted(fails, published, tmp_path, monkeypatch):
    monkeypatch.setattr(HFDirectory, "read", after(60, HFDirectory.read, KeyboardInterrupt()))
    fails(hf_to_flax, ["--hf", published(), "--out", tmp_path / "out"], 130, "interrupted")


def test_place_without_permission_or_space(fails, published, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    fails(hf_to_flax, ["--hf", published(), "--out", tmp_path / "file" / "out"], 1, "file")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    fails(hf_to_flax, ["--hf", published(), "--out", tmp_path / "out"], 2, "GB free")


def test_the_source_is_never_touched(published, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in published().iterdir()}
    assert hf_to_flax(["--hf", str(published()), "--out", str(tmp_path / "ours")]) == 0
    assert {file: file.stat().st_mtime_ns for file in published().iterdir()} == before
    assert tensors_of(published())


def after(calls, method, error):
    """The method, until it was called so many times; then the error."""
    count = 0

    def limited(*arguments):
        nonlocal count
        count += 1
        if count > calls:
            raise error
        return method(*arguments)

    return limited
