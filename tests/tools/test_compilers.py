"""Which compiler plans for what; and, where it is installed, that CUDA's copies no weights while decoding."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vr1_jax.errors import UsageError
from vr1_jax.tools.plan import compilers
from vr1_jax.tools.plan.compilers import choose_compiler
from vr1_jax.tools.plan.devices import find_target

REPOSITORY = Path(__file__).resolve().parents[2]

COMPILE = """
import dataclasses, json, sys
from vr1_jax.tools.plan.compilers import absent_devices
from vr1_jax.tools.plan.devices import find_target
name, target, phases, bucket = sys.argv[1], find_target(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4])
devices = absent_devices(target, "cuda")
from vr1_jax.config import load_config
from vr1_jax.tools.plan import plan
from vr1_jax.tools.plan.programs import Outline, programs
from vr1_jax.training.setup import make_meshes
config = load_config(f"configs/{name}.py")
data = dataclasses.replace(config.data, video_buckets=(config.data.video_buckets[bucket],), image_buckets=())
config = dataclasses.replace(config, data=dataclasses.replace(data, image_share=None))
model, _ = plan.planned_model(config)
outline, found = Outline(config, model, make_meshes(config, devices)), {}
for program in programs(outline):
    if program.phase in phases:
        need = plan._need(program, outline, target, {})
        copies, peak = sum(need.work.copies.values()), need.together / target.device.memory / plan.USABLE_MEMORY
        found[program.phase] = {"copies": copies, "bytes": need.work.bytes, "peak": peak}
print(json.dumps(found))
"""


def compiled(config, target, phases, bucket):
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", COMPILE, config, target, ",".join(phases), str(bucket)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def installed(monkeypatch, *names):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in names else None)


def test_the_targets_own_compiler_is_taken_where_it_is_installed(monkeypatch):
    installed(monkeypatch)
    assert choose_compiler(find_target("a100x8"), None) == "cpu"
    installed(monkeypatch, *compilers._PACKAGES.values())
    assert choose_compiler(find_target("a100x8"), None) == "cuda"
    assert choose_compiler(find_target("v5p-16"), None) == "tpu"
    assert choose_compiler(find_target("a100x8"), "cpu") == "cpu"


def test_a_compiler_that_cannot_be_is_refused(monkeypatch):
    installed(monkeypatch)
    with pytest.raises(UsageError, match=r"--compiler cuda needs jax_cuda12_plugin: pip install -e '.\[plan\]'"):
        choose_compiler(find_target("a100x8"), "cuda")
    with pytest.raises(UsageError, match="a100 is compiled for by cuda"):
        choose_compiler(find_target("a100"), "tpu")


with_cuda = pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs the extra `plan`")


@pytest.mark.slow
@with_cuda
def test_decoding_copies_neither_weights_nor_caches():
    """Reading the prompts copies a little; a copy for every token would be a third of all bytes."""
    found = compiled("tgrpo_3b_h200", "h100", ["rollout"], 0)["rollout"]
    assert found["bytes"] > 768 * 7e9  # weights are read for every token
    assert found["copies"] < 0.01 * found["bytes"]


@pytest.mark.slow
@with_cuda
def test_lora_of_3b_fits_24_gb_in_its_widest_bucket_and_copies_nothing_either():
    found = compiled("tgrpo_3b_lora_24gb", "rtx4090", ["rollout", "reference", "update"], -1)
    assert {phase: need["peak"] for phase, need in found.items() if need["peak"] > 0.8} == {}
    assert found["rollout"]["copies"] < 0.01 * found["rollout"]["bytes"]
