"""A child that hangs, crashes or eats memory costs one call."""

import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from vr1_jax.media.frames import MediaError
from vr1_jax.media.isolation import IsolatedProcess

CHILD = """
import os, signal, sys
import numpy as np
from vr1_jax.media.frames import MediaError
from vr1_jax.media.isolation import serve

served = 0

def handle(request):
    global served
    served += 1
    do = request["do"]
    if do == "spin":
        while True:
            pass
    if do == "block_alarm_and_spin":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        while True:
            pass
    if do == "abort" or (do == "abort_unless_first" and served > 1):
        os.abort()
    if do == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if do == "exhaust_memory":
        np.ones(1 << 33, np.uint8)
    if do == "refuse":
        raise MediaError("x", "undecodable", "no frames")
    print("noise on standard output")
    array = np.arange(request["size"], dtype=np.int32).reshape(2, -1)
    return {"pid": os.getpid(), "jax": "jax" in sys.modules, "do": do}, [array, array[:0]]

serve(handle)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "fake_decoder.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    process = IsolatedProcess("fake_decoder", deadline=1.0, memory_bytes=2 << 30)
    yield process
    process.close()


def ask(process, do="answer", size=6):
    return process.call("file", {"do": do, "size": size})


def test_arrays_arrive_whole_and_the_child_stays(child):
    first, arrays = ask(child, size=2_000_000)
    np.testing.assert_array_equal(arrays[0], np.arange(2_000_000, dtype=np.int32).reshape(2, -1))
    assert arrays[1].shape == (0, 1_000_000)
    second, _ = ask(child)
    assert first["pid"] == second["pid"] != os.getpid()
    assert not first["jax"]


def test_refusal_leaves_the_child_alive(child):
    before, _ = ask(child)
    with pytest.raises(MediaError, match="file: no frames") as caught:
        ask(child, "refuse")
    assert caught.value.reason == "undecodable"
    assert ask(child)[0]["pid"] == before["pid"]


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("spin", "timeout"),
        ("block_alarm_and_spin", "timeout"),
        ("abort", "crashed"),
        ("segfault", "crashed"),
        ("exhaust_memory", "crashed"),
    ],
)
def test_a_lost_child_costs_one_call(child, monkeypatch, do, reason):
    monkeypatch.setattr("vr1_jax.media.isolation.GRACE_SECONDS", 1.0)
    before, _ = ask(child)
    with pytest.raises(MediaError) as caught:
        ask(child, do)
    assert caught.value.reason == reason
    after, arrays = ask(child)
    assert after["pid"] != before["pid"]
    assert arrays[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_crash_that_depends_on_history_is_tried_in_a_fresh_child(child):
    ask(child)
    assert ask(child, "abort_unless_first")[0]["do"] == "abort_unless_first"


def test_a_child_that_cannot_start_is_an_error_of_the_program(tmp_path, monkeypatch):
    (tmp_path / "broken_decoder.py").write_text("import a_module_that_does_not_exist")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="broken_decoder"):
        ask(IsolatedProcess("broken_decoder", deadline=1.0, memory_bytes=2 << 30))


@pytest.mark.parametrize("do", ["answer", "spin"])
def test_the_child_ends_with_its_parent(tmp_path, child, do):
    """The parent is killed outright, with the child idle or hung."""
    program = f"""
import sys, threading, time
sys.path.insert(0, {str(tmp_path)!r})
from vr1_jax.media.isolation import IsolatedProcess
process = IsolatedProcess("fake_decoder", deadline=2.0, memory_bytes=2 << 30)
print(process.call("file", {{"do": "answer", "size": 2}})[0]["pid"], flush=True)
process.call("file", {{"do": {do!r}, "size": 2}})
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    give_up = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < give_up, "the child outlived its parent"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "timeout", "slow")))
    assert (str(error), error.reason, error.path) == ("a.mp4: slow", "timeout", "a.mp4")
