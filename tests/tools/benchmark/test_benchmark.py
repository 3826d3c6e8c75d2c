"""The built-in sizes and inputs, the floor, and one whole measurement of a very small step."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vr1_jax.errors import UsageError
from vr1_jax.models.config import parse_hf_config
from vr1_jax.models.flops import count_parameters
from vr1_jax.tools.benchmark import inputs
from vr1_jax.tools.benchmark.device import Peaks
from vr1_jax.tools.benchmark.floors import costs
from vr1_jax.tools.benchmark.random_model import published_config, write_random_model
from vr1_jax.tools.benchmark.sizes import QWEN_3B, QWEN_7B, SETTINGS, SMALL, TINY, changed
from vr1_jax.tools.benchmark.timing import Timing
from vr1_jax.tools.world.model import small_config, tiny_config
from vr1_jax.weights.loading import load_model

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PEAKS = Peaks(flops=1e12, bytes=1e11, devices=1)
SMALLEST = {"prompts": 2, "slices": 1, "patches": 16, "tokens": 16, "group": 2, "shuffled_group": 1, "answer": 4}


def test_built_in_sizes_are_the_models_they_name():
    assert parse_hf_config(tiny_config()) == TINY
    assert parse_hf_config(small_config()) == SMALL
    # As published: 3.75 and 8.29 billion, vision tower included.
    assert count_parameters(QWEN_3B).total == 3_754_622_976
    assert count_parameters(QWEN_7B).total == 8_292_166_656


@pytest.mark.parametrize("config", [TINY, QWEN_3B, QWEN_7B], ids=["tiny", "3b", "7b"])
def test_published_config_is_read_back(config):
    assert parse_hf_config(published_config(config)) == config


def test_random_model_loads(tmp_path):
    write_random_model(tmp_path / "model", TINY, np.dtype(np.float32))
    model, config = load_model(tmp_path / "model")
    assert config == TINY
    assert all(0 < float(np.std(leaf)) < 1 for leaf in jax.tree.leaves(model))


def test_grids_are_as_square_as_can_be():
    assert inputs.grid_of(324, 2) == (18, 18)
    assert inputs.grid_of(540, 2) == (18, 30)
    with pytest.raises(UsageError, match="--patches 10 is not a multiple of 4"):
        inputs.grid_of(10, 2)


def test_prompts_are_full_and_time_can_be_turned_around():
    work = SETTINGS["tiny"].work
    ordered, reversed_ = (inputs.prompt_arrays(TINY, work, reverse=reverse) for reverse in (False, True))
    assert ordered["mask"].all()
    visual = work.slices * work.patches // 4
    assert (ordered["visual_slots"] >= 0).sum() == work.prompts * visual
    np.testing.assert_array_equal(ordered["patches"], reversed_["patches"][:, ::-1])
    np.testing.assert_array_equal(ordered["tokens"], reversed_["tokens"])
    with pytest.raises(UsageError, match="--tokens 17 cannot hold 16 visual tokens"):
        inputs.prompt_arrays(TINY, dataclasses.replace(work, tokens=17))


def test_floor_of_decoding_is_reading_or_arithmetic():
    setting = SETTINGS["3b"]
    of_reading = costs(setting, Peaks(1e18, 1e12, 1))["decode"]
    assert of_reading.floor == pytest.approx(of_reading.bytes / 1e12)
    of_arithmetic = costs(setting, Peaks(1e12, 1e18, 1))["decode"]
    assert of_arithmetic.floor == pytest.approx(of_arithmetic.flops / 1e12)


def test_copies_of_the_weights_are_all_read():
    """Eight devices that each hold all weights read them eight times, and each its own answers' cache."""
    setting = SETTINGS["3b"]
    one, eight = (costs(setting, Peaks(1e18, n * 1e12, n))["decode"] for n in (1, 8))
    assert one.bytes < eight.bytes < 8 * one.bytes
    split = costs(changed(setting, {"rollout_tensor": 8}), Peaks(1e18, 8e12, 8))["decode"]
    assert split.bytes == one.bytes


def test_timing():
    timing = Timing([1.0, 2.0, 9.0], [1.0, 3.0, 2.0])
    assert timing.median == 2
    assert timing.cores == 0.5


def test_a_step_is_measured_by_phase():
    """In a process with one device, and little optimised: compiling is what it takes time for."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALLEST.items()]
    done = subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", "step", "--repeats=1", *options],
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result["phases"]) == ["rollout", "reward", "reference", "update"]
    for name in ("rollout", "reference", "update"):
        phase = result["phases"][name]
        assert phase["seconds"]["repeats"] == 1
        assert phase["share_of_floor"] == pytest.approx(phase["floor_seconds"] / phase["seconds"]["median"])
    assert result["rates"]["step_seconds"] == sum(p["seconds"]["median"] for p in result["phases"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patches=10"], "--patches 10 is not a multiple of 4"),
        (["--group=1"], "--group 1: must be at least 2"),
        (["--microbatches=3"], "--microbatches 3 does not divide --prompts 8"),
        (["--config=nowhere.py"], "--config nowhere.py: no such file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(load_command, capsys, arguments, message):
    assert load_command("bench").main(["compile", *arguments]) == 2
    assert message in capsys.readouterr().err
