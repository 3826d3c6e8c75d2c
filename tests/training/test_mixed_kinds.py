"""Texts, images and videos in one run, in every stage; and what a run that fails leaves behind."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from killed_run import ROOT, shared_memory
from tiny_runs import rl_config, sft_config, write_small_world

from vr1_jax.config import MeshConfig, OptimizerConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics

# A text has no slices; a bucket may leave room for some all the same.
NO_PIXELS, SOME_PIXELS = Bucket(0, 0, 192), Bucket(1, 4, 192)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """8 videos, 8 images and 8 texts: three steps of 8 see everything."""
    out = tmp_path_factory.mktemp("world") / "world"
    write_small_world(out)
    records = json.loads((out / "train.json").read_text())
    of_kind = {kind: [r for r in records if r["data_type"] == kind][:8] for kind in ("video", "image")}
    texts = [{**r, "data_type": "text", "path": None} for r in of_kind["image"]]
    assert len(of_kind["video"]) == len(texts) == 8
    (out / "train.json").write_text(json.dumps([*of_kind["video"], *of_kind["image"], *texts]))
    return out


def mixed(make, *where, bucket=NO_PIXELS, **changes):
    config = make(
        *where,
        steps=3,
        prompts_per_step=8,
        mesh=MeshConfig(data=2, fsdp=2, tensor=2, rollout_tensor=2),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", clip_norm=1.0),
        **changes,
    )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, text_buckets=(bucket,)))


@pytest.fixture(scope="module")
def sft(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "sft"
    train(mixed(sft_config, world, run))
    return run


def test_supervised(world, sft, tmp_path):
    """Microbatches, and room for pixels that nobody has, change nothing beyond the order of summation."""
    lines = read_metrics(sft)
    assert sorted(line["padding_patches"] for line in lines)[0] == 0.0  # the texts
    train(mixed(sft_config, world, tmp_path / "run", bucket=SOME_PIXELS, microbatches=2))
    for line, expected in zip(read_metrics(tmp_path / "run"), lines, strict=True):
        assert line["tokens"] == expected["tokens"]
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_t_grpo(world, sft, tmp_path, microbatches):
    train(mixed(rl_config, world, sft, tmp_path / "run", microbatches=microbatches))
    lines = read_metrics(tmp_path / "run")
    assert len(lines) == 3
    assert all(np.isfinite(line["loss"]) for line in lines)
    kinds = {name for line in lines for name in line if name.startswith("learned_")}
    assert kinds == {"learned_text", "learned_image", "learned_video"}
    assert len({line["seconds_rollout"] for line in lines}) == 3
    rollouts = sorted((tmp_path / "run/rollouts").iterdir())
    assert len(rollouts) == 3


FAILING = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny_runs import sft_config
from vr1_jax.config import MeshConfig
from vr1_jax.training import loop

def fails(*_, **__):
    raise ZeroDivisionError

def get_config():
    loop.sft_step = fails
    config = sft_config(Path({world!r}), Path({run!r}), mesh=MeshConfig())
    data = dataclasses.replace(config.data, workers=2, text_buckets=config.data.image_buckets)
    return dataclasses.replace(config, data=data)
"""


def test_a_run_that_fails_leaves_no_shared_memory(world, tmp_path):
    """Its workers hand batches over in shared memory, and work ahead.

    Python's resource tracker may have to free a batch that Grain's threads hold at the end, and says so.
    """
    places = {"tests": str(ROOT / "tests"), "world": str(world), "run": str(tmp_path / "run")}
    (tmp_path / "failing.py").write_text(FAILING.format(**places))
    before = shared_memory()
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--config", str(tmp_path / "failing.py")]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 1
    assert ended.stderr.count("ZeroDivisionError") == 2  # the line that raises, and the error
    assert shared_memory() - before == set()
