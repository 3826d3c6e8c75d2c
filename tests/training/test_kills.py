"""Killed at any moment, a run ends as if nothing had happened: the same to the bit, no record twice or lost.

Nor does it leave anything behind: not its workers, not their decoders, not their shared memory.
"""

import random
import time

import pytest
from killed_run import (
    await_event,
    command,
    contents,
    fork_server,
    kill_after,
    left_behind,
    shared_memory,
    spoil,
    write_config,
    write_model,
)
from tiny_runs import write_small_world

from vr1_jax.training.metrics import read_metrics

STEPS, EVERY, WORKERS = 16, 1, 2
SECONDS_TO_END = 20.0  # for children on a machine under load
EVENTS = ("step", "start", "save", "start", "step", "save", "start", "step", "save", "start")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A world with bad records, a model, and an uninterrupted run."""
    place = tmp_path_factory.mktemp("kills")
    write_small_world(place / "world")
    spoil(place / "world")
    write_model(place / "world", place / "model")
    child = start(place, "straight")
    child.join()
    assert child.exitcode == 0, (place / "straight.log").read_text()
    return place


def start(place, name):
    config = place / f"{name}.py"
    write_config(config, place / "world", place / "model", place / name, STEPS, EVERY, workers=WORKERS)
    child = fork_server().Process(target=command, args=(config, place / f"{name}.log", place / "cache"))
    child.start()
    return child


def remains(config, memory) -> list[str]:
    """What is there still when all has had time to end."""
    deadline = time.monotonic() + SECONDS_TO_END
    while (found := left_behind(config) + sorted(shared_memory() - memory)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_ten_kills_change_nothing(place):
    straight = contents(place / "straight")
    assert straight["step"] == STEPS
    assert len(straight["quarantine"].splitlines()) == 5
    assert all(line["grad_norm"] > 0 for line in straight["metrics"])
    run, log, dice, kills, most = place / "killed", place / "killed.log", random.Random(0), 0, 0
    step = min(line["seconds_rollout"] + line["seconds_update"] for line in read_metrics(place / "straight"))
    longest = {"start": 0.0, "step": step, "save": step / 2}
    for event in EVENTS:
        memory = shared_memory()
        child = start(place, "killed")
        waited = await_event(event, run, log, child)
        most = max(most, len(left_behind(place / "killed.py")))
        if event == "step":
            longest["start"] = waited  # loading and compiling included
        kills += kill_after(child, dice.uniform(0, longest[event]), log)
        assert not remains(place / "killed.py", memory), event
    child = start(place, "killed")
    child.join()
    assert child.exitcode == 0, log.read_text()
    assert kills == len(EVENTS)
    assert most >= 2 * WORKERS  # there was something to end: workers and their decoders
    killed = contents(run)
    for name, value in straight.items():
        assert killed[name] == value, name
