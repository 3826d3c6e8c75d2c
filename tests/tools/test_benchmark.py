"""The built-in sizes and inputs, the floor, and one whole measurement of a very small step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vr1_jax.errors import UsageError
from vr1_jax.models.families import parse_hf_config
from vr1_jax.models.qwen25vl import PUBLISHED
from vr1_jax.tools.benchmark import device, inputs
from vr1_jax.tools.benchmark.device import Peaks
from vr1_jax.tools.benchmark.inputs import of_size
from vr1_jax.tools.benchmark.timing import Timing, repeat
from vr1_jax.tools.plan.programs import programs
from vr1_jax.tools.world.model import SMALL, TINY, hf_config, write_random_model
from vr1_jax.weights.loading import load_model

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALLEST = {"prompts": 2, "slices": 1, "patches": 16, "tokens": 16, "group": 2, "shuffled_group": 1, "answer": 4}


@pytest.mark.parametrize("config", [TINY, SMALL, *PUBLISHED.values()], ids=["tiny", "30m", *PUBLISHED])
def test_config_json_is_read_back(config):
    assert parse_hf_config(hf_config(config)) == config


def test_random_model_loads(tmp_path):
    write_random_model(tmp_path / "model", TINY, np.dtype(np.float32))
    model, config = load_model(tmp_path / "model")
    assert config == TINY
    assert all(0 < float(np.std(leaf)) < 1 for leaf in jax.tree.leaves(model))


def test_grids_are_as_square_as_can_be():
    assert inputs.grid_of(324, 2) == (18, 18)
    assert inputs.grid_of(540, 2) == (18, 30)


def test_prompts_are_full_and_time_can_be_turned_around():
    work = of_size("tiny").work
    ordered, reversed_ = (inputs.prompt_arrays(TINY, work, reverse=reverse) for reverse in (False, True))
    assert ordered["mask"].all()
    visual = work.slices * work.patches // 4
    assert (ordered["visual_slots"] >= 0).sum() == work.prompts * visual
    np.testing.assert_array_equal(ordered["patches"], reversed_["patches"][:, ::-1])
    np.testing.assert_array_equal(ordered["tokens"], reversed_["tokens"])
    with pytest.raises(UsageError, match="--tokens 17 cannot hold 16 visual tokens"):
        of_size("tiny", tokens=17)


@pytest.mark.parametrize("stage", ["rl", "sft"])
def test_inputs_are_those_that_the_programs_take(stage):
    """Of the planned shapes, dtypes and places, but that answers are not rounded up to the room they are given."""
    subject = of_size("tiny", stage, answer=64)
    for program in programs(subject.outline):
        if program.phase in ("copy", "rollout"):
            continue
        given = inputs.arguments(subject.outline, program)
        for real, planned in zip(jax.tree.leaves(given), jax.tree.leaves(list(program.arguments)), strict=True):
            if hasattr(planned, "shape"):
                assert (real.shape, real.dtype) == (planned.shape, planned.dtype)
                assert planned.sharding is None or real.sharding.is_equivalent_to(planned.sharding, real.ndim)


def costs(peaks, **changes):
    return device.costs(of_size("3b", **changes).outline, peaks)


def test_floor_of_decoding_is_reading_or_arithmetic():
    of_reading = costs(Peaks(1e18, 1e12, 1))["decode"]
    assert of_reading.floor == pytest.approx(of_reading.bytes / 1e12)
    of_arithmetic = costs(Peaks(1e12, 1e18, 1))["decode"]
    assert of_arithmetic.floor == pytest.approx(of_arithmetic.flops / 1e12)


def test_copies_of_the_weights_are_all_read():
    """Eight devices that each hold all weights read them eight times, and each its own answers' cache."""
    one, eight = (costs(Peaks(1e18, n * 1e12, n))["decode"] for n in (1, 8))
    assert one.bytes < eight.bytes < 8 * one.bytes
    split = costs(Peaks(1e18, 8e12, 8), rollout_tensor=8)["decode"]
    assert split.bytes == one.bytes


def test_timing():
    timing = Timing([1.0, 2.0, 9.0], [1.0, 3.0, 2.0], 20.0)
    assert timing.median == 2
    assert timing.to_json()["cores"] == 0.5
    part = Timing([0.5, 0.5, 5.0], [1.0, 1.0, 1.0], 4.0)
    assert timing - part == Timing([0.5, 1.5, 4.0], [0.0, 2.0, 1.0], 20.0)


def test_repeats_are_timed_by_phase_after_warming_up():
    calls = []

    def body(watch):
        calls.append(watch)
        with watch("a"):
            pass
        with watch("a"), watch("b"):
            pass

    timings = repeat(body, 3, warm_up=2)
    assert len(calls) == 5
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}
    assert timings["b"].first == calls[0].seconds["b"] <= calls[0].seconds["a"]


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
        (["--patches=0"], "--patches 0: must be at least 1"),
        (["--group=1"], "rollout.group is 1; a group needs 2 answers"),
        (["--microbatches=3"], "prompts_per_step 8 does not divide into updates_per_batch 1 x microbatches 3"),
        (["--config=nowhere.py"], "--config nowhere.py: no such file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(load_command, capsys, arguments, message):
    assert load_command("bench").main(["compile", *arguments]) == 2
    assert message in capsys.readouterr().err
