"""plan.py as its user meets it: a table, a verdict, exit codes, one line for a mistake."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vr1_jax.tools.plan import devices
from vr1_jax.tools.world.model import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG = """
from vr1_jax.config import DataConfig, TrainConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.media.frames import FrameBudget

def get_config():
    frames = FrameBudget(max_frames=8, min_pixels=56 * 56, max_pixels=56 * 56)
    buckets = (Bucket(slices=4, patches=16, tokens=192),)
    data = DataConfig(records=("nowhere.json",), video_buckets=buckets, frames=frames, answer_tokens=48)
    return TrainConfig("sft", {model!r}, "run", steps=4, data=data, compute_dtype="float32")
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plan")
    (directory / "config.json").write_text(json.dumps(tiny_config()))
    path = directory / "small.py"
    path.write_text(CONFIG.format(model=str(directory)))
    return path


@pytest.fixture(scope="module")
def planned(config):
    """A target's devices are simulated in a process of their own."""
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts/train.py", "--config", config, "--plan", "--target", "h200x2"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_a_plan_needs_the_models_config_only(planned):
    assert planned.returncode == 0, planned.stderr
    assert "on 2 x h200" in planned.stdout
    assert "optimizer moments" in planned.stdout
    assert "seconds a step, derived" in planned.stdout
    assert planned.stdout.splitlines()[-1].startswith("peak ")


def test_missing_data_is_told_and_no_obstacle(planned):
    assert "would not start yet: data.records: nowhere.json: no such file" in planned.stderr


def test_what_does_not_fit_fails(load_command, config, capsys, monkeypatch):
    machine = devices.this_machine()
    small = dataclasses.replace(machine.device, memory=1e6)
    assert machine.count == 8
    monkeypatch.setattr(devices, "this_machine", lambda: dataclasses.replace(machine, device=small))
    arguments = ["--config", str(config), "--prompts-per-step", "8", "--optimizer.moments", "factored"]
    assert load_command("plan").main(arguments) == 1
    assert "does not fit" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "gpu"], "--target gpu: not in the table"),
        (["--model", "nowhere"], "model: nowhere: no config.json"),
        (["--prompts-per-step", "6"], "prompts_per_step 6"),
    ],
)
def test_mistakes_get_one_line(load_command, config, capsys, arguments, message):
    assert load_command("plan").main(["--config", str(config), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
