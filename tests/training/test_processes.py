"""Two processes over loopback train as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import rl_config, sft_config, write_small_world

from vr1_jax.config import MeshConfig, OptimizerConfig, WatchConfig
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics

# The KL is a small difference of log-probs, which agree to 1e-4; a gradient without signal is rounding alone.
ROUNDING = {"kl": 1e-4, "grad_norm": 1e-3}
# Adam makes full steps of rounding alone, too: small ones here, so that two runs stay comparable.
OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
from pathlib import Path
from tiny_runs import rl_config
from vr1_jax.config import MeshConfig, OptimizerConfig, WatchConfig

def get_config():
    return rl_config(
        Path({world!r}), Path({sft!r}), Path({run!r}), steps=3, prompts_per_step=8,
        mesh=MeshConfig(fsdp=2), watch=WatchConfig(evaluate_every=3),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_train_as_one(tmp_path, port):
    world, sft = tmp_path / "world", tmp_path / "sft"
    write_small_world(world)
    mesh = MeshConfig(fsdp=8)
    train(sft_config(world, sft, steps=2, prompts_per_step=8, mesh=mesh))
    watch = WatchConfig(evaluate_every=3)
    train(
        rl_config(
            world, sft, tmp_path / "one", steps=3, prompts_per_step=8, mesh=mesh, watch=watch, optimizer=OPTIMIZER
        )
    )

    config = tmp_path / "two.py"
    config.write_text(CONFIG.format(world=str(world), sft=str(sft), run=str(tmp_path / "two")))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    command = [sys.executable, "scripts/train.py", "--config", config, "--coordinator", f"127.0.0.1:{port}"]
    children = [
        subprocess.Popen(
            [*command, "--processes", "2", "--process", str(process)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for child in children:
        _, errors = child.communicate(timeout=600)
        assert child.returncode == 0, errors

    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(two) == len(one) == 3
    for alone, together in zip(one, two, strict=True):
        for name in ("loss", "reward", "accuracy", "length", "kl", "entropy", "grad_norm"):
            atol = ROUNDING.get(name, 1e-5)
            np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=atol, err_msg=name)
    for name in ("heldout_accuracy", "heldout_format", "heldout_accuracy_error"):
        assert two[-1][name] == pytest.approx(one[-1][name], abs=1e-6)
