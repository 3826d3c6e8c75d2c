"""Every config compiles all its programs from shapes, on the devices it is meant for; no weights, no data.

In processes of their own, which simulate as many devices. One process plans all configs of one machine, so that
what they share is compiled once: three of the ablations share every program with the main run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vr1_jax.tools.world.model import tiny_config

REPOSITORY = Path(__file__).resolve().parents[1]
PHASES = {"rl": {"copy", "rollout", "reference", "update"}, "sft": {"update"}}

# The main run's images too; of the others only videos, which need more.
MACHINES = {
    "a100x8": (
        *("tgrpo_a100", "grpo_a100", "sft_a100", "tgrpo_no_images", "tgrpo_zero", "tgrpo_v5p"),
        *("video_r1_upstream", "video_r1_upstream_sft"),
    ),
    "h200": ("tgrpo_3b_h200",),
    "rtx4090": ("tgrpo_3b_lora_24gb",),
    "l40s": ("tgrpo_7b_lora_48gb",),
    "demo": ("demo", "shortcut"),
}

PLAN_ALL = """
import dataclasses, json, sys
from vr1_jax.tools.plan.compilers import absent_devices
from vr1_jax.tools.plan.devices import find_target
machine, configs, overrides = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
target = find_target("h200" if machine == "demo" else machine)
devices = absent_devices(target, "cpu")
from vr1_jax.config import load_config
from vr1_jax.tools.plan.plan import make_plan, planned_model
seen, found = {}, {}
for name in configs:
    config = load_config(f"configs/{name}.py", overrides)
    # The buckets of a kind differ in numbers only; the last is the largest.
    data = dataclasses.replace(config.data, video_buckets=config.data.video_buckets[-1:])
    images = data.image_buckets[-1:] if name == "tgrpo_a100" else ()
    config = dataclasses.replace(config, data=dataclasses.replace(data, image_buckets=images))
    before = len(seen)
    plan = make_plan(config, planned_model(config)[0], target, devices, seen)
    found[name] = {
        "stage": config.stage,
        "phases": [need.phase for need in plan.needs],
        "peak": plan.peak.together,
        "fits": plan.fits,
        "compiled": len(seen) - before,
        "seconds": [sum(phases.values()) for phases in plan.seconds.values()],
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Of all configs, by name."""
    model = tmp_path_factory.mktemp("tiny")
    (model / "config.json").write_text(json.dumps(tiny_config()))
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    found = {}
    for machine, configs in MACHINES.items():
        # The demo's model is made by the run before it.
        overrides = ("--model", str(model)) if machine == "demo" else ()
        command = [sys.executable, "-c", PLAN_ALL, machine, json.dumps(configs), *overrides]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_config_is_planned(plans):
    assert set(plans) == {path.stem for path in (REPOSITORY / "configs").glob("*.py")}


def test_all_programs_compile(plans):
    for name, plan in plans.items():
        evaluated = {"evaluate"} if name in MACHINES["demo"] else set()
        in_place = {"copy"} if "lora" in name else set()  # what samples are the weights that are trained around
        assert set(plan["phases"]) == (PHASES[plan["stage"]] | evaluated) - in_place


def test_all_fit_their_machines(plans):
    # For layers that are apart the CPU's compiler counts a third too much; test_compilers.py asks CUDA's.
    asked_elsewhere = {"tgrpo_3b_lora_24gb"}
    assert [name for name, plan in plans.items() if not plan["fits"] and name not in asked_elsewhere] == []
    of_a100 = {name: plan["peak"] for name, plan in plans.items() if name in MACHINES["a100x8"]}
    assert {name: peak for name, peak in of_a100.items() if peak > 60e9} == {}
    assert min(of_a100.values()) > 12.4e9  # 12 bytes for each of 8.3 billion parameters, over 8 devices


def test_ablations_share_the_main_runs_programs(plans):
    assert plans["tgrpo_a100"]["compiled"] == 9  # rollouts in two depths
    for name in ("tgrpo_no_images", "tgrpo_zero", "tgrpo_v5p"):
        assert plans[name]["compiled"] == 0
    assert plans["grpo_a100"]["compiled"] == 2  # no shuffled group in the rollout


def test_steps_take_seconds_to_a_minute(plans):
    for name in MACHINES["a100x8"]:
        assert all(0.1 < seconds < 100 for seconds in plans[name]["seconds"])
