"""One RL run as a user starts it, in child processes that can be killed; and what it left, comparable.

A fork server that has everything imported makes a child start in a fraction of the seconds a command takes.
"""

import contextlib
import gzip
import json
import multiprocessing
import os
import signal
import time
from multiprocessing import resource_tracker
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from commands import load_command

from vr1_jax.config import CheckpointConfig, OptimizerConfig
from vr1_jax.files import read_json
from vr1_jax.models.families import build, parse_hf_config
from vr1_jax.training.checkpoint import Checkpoints
from vr1_jax.training.metrics import read_metrics
from vr1_jax.training.steps import init_state
from vr1_jax.weights.checkpoint_dir import HF, copy_assets

ROOT = Path(__file__).resolve().parents[1]
MARK = "VR1_JAX_TEST_RUN"
CONFIG = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny_runs import rl_config
from vr1_jax.config import CheckpointConfig, MeshConfig, OptimizerConfig

def letters(answer, sample):
    return len(set(answer)) / 30  # a model that knows nothing still earns this or that

def get_config():
    config = rl_config(
        Path({world!r}), Path({model!r}), Path({run!r}), steps={steps}, mesh=MeshConfig(), rewards=(letters,),
        checkpoint=CheckpointConfig(every={every}),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", total_steps={steps}),
    )
    data = dataclasses.replace(config.data, image_share={image_share}, workers={workers})
    return dataclasses.replace(config, data=data)
"""


def write_model(world: Path, out: Path) -> None:
    """Random weights as a checkpoint directory, to start from and stay near to."""
    config = parse_hf_config(read_json(world / "tiny/config.json"))
    copy_assets(world / "tiny", out / HF)
    state = jax.jit(lambda: init_state(build(config, jax.random.key(0)), OptimizerConfig()))()
    with Checkpoints(out, CheckpointConfig(), {}) as saved:
        saved.save(state, {}, {})


def spoil(world: Path) -> None:
    """Five bad records among the good ones: damaged, missing, empty and impossible."""
    records = json.loads((world / "train.json").read_text())
    videos = [record for record in records if record["data_type"] == "video"]
    (world / "media/noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (world / "media/empty.mp4").write_bytes(b"")
    for place, path in ((2, "noise.mp4"), (5, "nowhere.mp4"), (11, "empty.mp4"), (13, "nowhere.mp4")):
        records.insert(place, videos[place] | {"path": f"./{path}", "problem_id": 1000 + place})
    records.insert(7, videos[7] | {"data_type": "smell"})
    (world / "train.json").write_text(json.dumps(records))


def write_config(
    path: Path, world: Path, model: Path, run: Path, steps: int, every: int, image_share=0.0, workers=0
) -> Path:
    places = {"world": str(world), "model": str(model), "run": str(run), "tests": str(ROOT / "tests")}
    path.write_text(CONFIG.format(**places, steps=steps, every=every, image_share=image_share, workers=workers))
    return path


def command(config: Path, log: Path, cache: Path) -> None:
    """scripts/train.py --config CONFIG, in this process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ[MARK] = str(config.with_suffix(""))  # for its children, and theirs
    resource_tracker._resource_tracker.__init__()  # its own, as a command has, and not the fork server's
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device, compiled soon
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os._exit(load_command("scripts/train.py").main(["--config", str(config)]))


def left_behind(config: Path) -> list[str]:
    """Commands of the processes that runs of this config started and that are still there."""
    mark, found = f"{MARK}={config.with_suffix('')}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [command for command in found if command]


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def fork_server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["killed_run", "vr1_jax.training.loop", "transformers.models.auto.tokenization_auto", "grain"]
    )
    return context


def await_event(event: str, run: Path, log: Path, child) -> float:
    """Seconds until the child told of a step or began to save; "start" is at once."""
    began, before = time.monotonic(), count_steps(log)
    happened = {
        "start": lambda: True,
        "step": lambda: count_steps(log) > before,
        "save": lambda: any(".saving" in path.name for path in (run / "checkpoints").glob("*")),
    }[event]
    while child.is_alive() and not happened():
        time.sleep(0.002)
    return time.monotonic() - began


def count_steps(log: Path) -> int:
    return log.read_bytes().count(b"\nstep ") if log.exists() else 0


def kill_after(child, seconds: float, log: Path) -> bool:
    """Whether the child was still alive then; one that failed shows its log."""
    child.join(seconds)
    killed = child.is_alive()
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), log.read_text()
    return killed


def contents(run: Path) -> dict:
    """All that must not depend on kills: state to the bit, records and answers of each step, metrics, refusals."""
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
    trees = ocp.load_checkpointables(run / f"checkpoints/{newest}")
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(trees)}
    progress = read_json(run / f"checkpoints/{newest}/progress.json")
    return {
        "step": newest,
        "state": {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
        "position": progress["data"],
        "rollouts": {path.name: read_rollouts(path) for path in sorted((run / "rollouts").iterdir())},
        "metrics": [{name: x for name, x in line.items() if not timed(name)} for line in read_metrics(run)],
        "quarantine": (run / "quarantine.jsonl").read_text(),
    }


def read_rollouts(path: Path) -> dict:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def timed(name: str) -> bool:
    return any(part in name for part in ("second", "memory", "mfu"))
