"""Two processes save together; one process restores what they saved, and the other way round."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_state import abstract_state, checkpoints, one_device, same, state_at

PROGRAM = """
import contextlib, os, pathlib, signal, sys
import jax
process, port, run = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
import numpy as np
from tiny_state import abstract_state, checkpoints, largest_file, state_at
from vr1_jax import sharding
from vr1_jax.errors import UserError
from vr1_jax.training.processes import end_if_several, stop_on_signal

mesh = sharding.make_mesh(1, 2, 1)
with checkpoints(run) as saved, stop_on_signal() as stop_requested:
    state, data_state = saved.restore(abstract_state(mesh))
    assert data_state == {"next": 1}
    for ours, expected in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(1, mesh)), strict=True):
        for a, b in zip(ours.addressable_shards, expected.addressable_shards, strict=True):
            assert (np.asarray(a.data) == np.asarray(b.data)).all()
    for step in (2, 3, 4):
        saved.save(state_at(step, mesh), {"next": step}, {})
    saved.wait()
    with largest_file(10_000) if process == 1 else contextlib.nullcontext():
        saved.save(state_at(5, mesh), {"next": 5}, {})
        try:
            saved.wait()
            raise AssertionError("saved what could not be written")
        except UserError as error:
            print(error, flush=True)
    saved.save(state_at(6, mesh), {"next": 6}, {})
    saved.wait()
    assert not stop_requested()
    if process == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop_requested()  # by both, though only one was told
end_if_several(0)  # the given-up save of step 5 would be waited for
"""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_both(run: Path, port: int) -> list[str]:
    """What both print; two minutes are less than a barrier waits for a process that failed."""
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests), "XLA_FLAGS": ""}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(process), str(port), str(run)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = []
    for child in children:
        output, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        outputs.append(output)
    return outputs


def test_two_processes_and_one_exchange_checkpoints(tmp_path, free_port):
    run, mesh = tmp_path / "run", one_device()
    with checkpoints(run) as saved:
        saved.save(state_at(1, mesh), {"next": 1}, {})
    messages = run_both(run, free_port)
    assert all("the last checkpoint could not be saved" in message for message in messages)
    assert "process 1: " in messages[0]  # which failed alone
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "4", "6"]
    assert len(list((run / "checkpoints/6").glob("checksums.*-of-2.json"))) == 2
    with checkpoints(run) as saved:
        state, data_state = saved.restore(abstract_state(mesh))
    assert same(state, state_at(6, mesh))
    assert data_state == {"next": 6}
    (run / "checkpoints/6/checksums.1-of-2.json").unlink()
    shutil.rmtree(run / "checkpoints/4")
    with checkpoints(run) as saved:
        assert saved.restore(abstract_state(mesh)).data_state == {"next": 3}
