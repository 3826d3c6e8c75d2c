"""A sound model to spoil, and the commands that must refuse it: one line that names the file, in bounded time."""

import contextlib
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import load_command
from safetensors.numpy import load_file, save_file
from tiny_runs import sft_config, write_small_world

from vr1_jax import command_line
from vr1_jax.models.families import parse_hf_config
from vr1_jax.tools.world.model import write_random_model
from vr1_jax.training.loop import train
from vr1_jax.weights.hf_directory import HFDirectory

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 90  # a hundred times what a refusal takes
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
LOOPS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4


def script(folder, name):
    return load_command(f"{folder}/{name}.py").main


@contextlib.contextmanager
def deadline():
    def late(*_):
        raise AssertionError(f"not done after {SECONDS} s")

    usual = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Records, and a sound model with weights."""
    out = tmp_path_factory.mktemp("hostile") / "world"
    write_small_world(out)
    config = parse_hf_config(json.loads((out / "tiny/config.json").read_text()))
    made = out.parent / "made"
    write_random_model(made, config, np.dtype(np.float32))
    shutil.copyfile(made / WEIGHTS, out / "tiny" / WEIGHTS)
    HFDirectory(out / "tiny")
    return out


@pytest.fixture
def model(world, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(world / "tiny", tmp_path / "model"))


@pytest.fixture
def commands(world, tmp_path):
    """Name -> what runs the command on a model directory and returns its exit code."""

    def hf_to_flax(model):
        return script("convert", "hf_to_flax")(["--hf", str(model), "--out", str(tmp_path / "converted")])

    def generate(model):
        return script("scripts", "generate")(["--model", str(model), "--question", "x", "--max-new-tokens", "2"])

    def score(model):
        (tmp_path / "in.jsonl").write_text((world / "train.json").read_text())
        files = [
            "--records",
            tmp_path / "in.jsonl",
            "--out",
            tmp_path / "out.jsonl",
            "--media-root",
            world / "media",
        ]
        return script("scripts", "score")(["--model", str(model), *map(str, files)])

    def evaluate(model):
        asked = ["--annotations", world / "heldout.json", "--media-root", world / "media", "--frames", 2]
        options = ["--max-new-tokens", 2, "--out", tmp_path / "out.json", "--workers", 1]
        return script("scripts", "evaluate")([str(x) for x in ("--model", model, *asked, *options)])

    def start_training(model):
        config = sft_config(world, tmp_path / "run", model=str(model), from_scratch=False)
        code = command_line.run("train", lambda: train(config) and None)
        assert not (tmp_path / "run/hf").exists()  # the mended directory must not find a copy of the broken one
        return code

    return {f.__name__: f for f in (hf_to_flax, generate, score, evaluate, start_training)}


@pytest.fixture
def refused(commands, capfd):
    """Runs commands that must fail with one line."""

    def check(model, *words, by=("hf_to_flax", "generate", "start_training")):
        for name in by:
            capfd.readouterr()
            with deadline():
                code = commands[name](model)
            lines = [line for line in capfd.readouterr().err.splitlines() if "converting:" not in line]
            assert (code, len(lines)) == (1, 1), lines
            assert len(lines[0]) < 1000
            for word in (str(model), *words):
                assert word in lines[0]

    return check


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def poison(file: Path, value: float) -> None:
    """One weight of many."""
    tensors = load_file(file)
    tensors[NORM][-1] = value
    save_file(tensors, file)
