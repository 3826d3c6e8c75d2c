"""A run directory belongs to one run: one process at a time, one beginning, every start on record."""

import dataclasses
import json
import subprocess
import sys

import pytest
from killed_run import write_model
from tiny_runs import rl_config, sft_config, write_small_world

from vr1_jax.config import WatchConfig
from vr1_jax.data.prompts import Presentation
from vr1_jax.errors import UsageError, UserError
from vr1_jax.sharding import make_mesh
from vr1_jax.training import run_directory, setup
from vr1_jax.training.rollouts import ROLLOUTS, forget_rollouts

HOLD = """
import sys
from vr1_jax.training.run_directory import Path, locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    input()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world") / "world"
    write_small_world(world)
    return world


@pytest.fixture
def model(world, tmp_path):
    write_model(world, tmp_path / "model")
    return tmp_path / "model"


def test_two_processes_cannot_run_one_run(tmp_path):
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    holder.stdout.readline()
    refused = pytest.raises(UserError, match=rf"run: process {holder.pid} on .* is running it")
    with refused, run_directory.locked(run):
        pass
    holder.kill()  # the kernel frees what it held
    holder.wait()
    with run_directory.locked(run):
        pass


def test_what_a_run_began_from_is_kept_apart_from_what_came_of_it(model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    run_directory.begin(run, model, Presentation())
    assert run_directory.origin_step(run, model) == 0
    steps = model / "checkpoints"
    subprocess.run(["cp", "-r", steps / "0", steps / "5"], check=True)  # it trained on
    run_directory.begin(run, model, Presentation())
    assert run_directory.origin_step(run, model) == 0
    (steps / "0").rename(steps / "0.gone")
    with pytest.raises(UserError, match=r"model: what .*run began from is gone; .* no step 0; there are 5"):
        run_directory.origin_step(run, model)
    (steps / "5").rename(steps / "0")
    assert run_directory.origin_step(run, model) == 0  # a copy is as good
    largest = max((steps / "0/params").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"step 0 of .*model is not what it was when .*run began"):
        run_directory.origin_step(run, model)


def test_a_kill_while_beginning_leaves_nothing_that_looks_complete(model, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()

    def killed(source, target):
        target.mkdir()
        (target / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "copy_assets", killed)
        with pytest.raises(KeyboardInterrupt):
            run_directory.begin(run, model, Presentation())
    assert not (run / "hf").exists()
    run_directory.begin(run, model, Presentation())
    names = sorted(path.name for path in (model / "hf").iterdir())
    assert sorted(path.name for path in (run / "hf").iterdir()) == sorted([*names, "presentation.json"])
    assert not (run / "hf.partial").exists()


def test_every_start_is_on_record(world, tmp_path):
    config = sft_config(world, tmp_path / "run", seed=3)
    (tmp_path / "run").mkdir()
    run_directory.record_start(config, make_mesh(2, 2, 2), first_step=0)
    run_directory.record_start(config, make_mesh(1, 8, 1), first_step=17)
    run_directory.record_start(config, make_mesh(1, 4, 2), first_step=40)
    latest = json.loads((tmp_path / "run/environment.json").read_text())
    assert [start["first_step"] for start in [*latest["earlier"], latest]] == [0, 17, 40]
    assert latest["earlier"][1]["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert latest["device"]["count"] == 8
    assert latest["device"]["kind"] == "cpu"
    assert "xla_force_host_platform_device_count" in latest["variables"]["XLA_FLAGS"]
    assert latest["seed"] == latest["config"]["seed"] == 3
    assert {"jax", "python", "orbax-checkpoint"} <= latest["versions"].keys()
    assert {"commit", "command", "host", "processes", "time"} <= latest.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"watch": WatchConfig(tensorboard=True)},
            "watch.tensorboard needs the package tensorboardX: pip",
        ),
        ({"watch": WatchConfig(wandb_project="x")}, "watch.wandb_project needs the package wandb: pip"),
        ({"watch": WatchConfig(evaluate_every=5), "heldout": ()}, "watch.evaluate_every .* data.heldout names no"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_start(world, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    config = sft_config(world, tmp_path / "run")
    data = dataclasses.replace(config.data, **({"heldout": ()} if "heldout" in changes else {}))
    with pytest.raises(UsageError, match=message):
        setup.check_files(dataclasses.replace(config, watch=changes["watch"], data=data))


def test_a_run_is_not_its_own_model(world, model):
    with pytest.raises(UsageError, match="is the model's own directory"):
        setup.check_files(rl_config(world, model, model))


def test_what_will_be_done_again_is_forgotten(tmp_path):
    """Steps 0..3 by two processes; the run goes on from step 2."""
    names = [f"{step:06d}.0.{process}.json.gz" for step in range(4) for process in range(2)]
    forget_rollouts(tmp_path, 2)  # no directory yet
    (tmp_path / ROLLOUTS).mkdir()
    for name in names:
        (tmp_path / ROLLOUTS / name).touch()
    forget_rollouts(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / ROLLOUTS).iterdir()) == names[:4]
