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
import json, sys
from vr1_jax.tools.plan.compilers import absent_devices
from vr1_jax.tools.plan.devices import find_target
target = find_target("h100")
devices = absent_devices(target, "cuda")
from vr1_jax.config import load_config
from vr1_jax.tools.plan import plan
from vr1_jax.tools.plan.programs import Outline, programs
from vr1_jax.training.setup import make_meshes
config = load_config(sys.argv[1], ["--model", "3b", "--rollout.sampling.max-new-tokens", "768"])
model, _ = plan.planned_model(config)
outline = Outline(config, model, make_meshes(config, devices))
rollout = next(program for program in programs(outline) if program.phase == "rollout")
need = plan._need(rollout, outline, target, {})
print(json.dumps({"copies": sum(need.work.copies.values()), "bytes": need.work.bytes, "peak": need.together}))
"""


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
    with pytest.raises(
        UsageError, match=r"--compiler cuda needs jax_cuda12_plugin: pip install 'vr1_jax\[plan\]'"
    ):
        choose_compiler(find_target("a100x8"), "cuda")
    with pytest.raises(UsageError, match="a100 is compiled for by cuda"):
        choose_compiler(find_target("a100"), "tpu")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs the extra `plan`")
@pytest.mark.parametrize("config", ["tgrpo_3b_h200", "tgrpo_3b_lora_24gb"])
def test_decoding_copies_neither_weights_nor_caches(config):
    """On one H100. Reading the prompts copies a little; a copy for every token would be a third of all bytes."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", COMPILE, f"configs/{config}.py"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bytes"] > 768 * 7e9  # weights are read for every token
    assert found["copies"] < 0.01 * found["bytes"]
