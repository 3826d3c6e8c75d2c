"""Exit codes and single lines; Ctrl-C at any moment."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vr1_jax import command_line
from vr1_jax.data.records import RecordError
from vr1_jax.errors import UsageError

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
sys.path.insert(0, {folder!r})
from vr1_jax import command_line

def work():
    print("started", file=sys.stderr, flush=True)
    import slow
    slow.wait()

sys.exit(command_line.run("name", work, interrupted="nothing was kept"))
"""
# As native modules do: whatever interrupts the import is lost.
SLOW = """
import time
from pathlib import Path
try:
    time.sleep(1)
except BaseException:
    pass

def wait():
    time.sleep(60)
"""


def interrupted(process: subprocess.Popen, times: int) -> tuple[int, str]:
    assert process.stderr.readline() == "started\n"
    for _ in range(times):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=50)
    return process.returncode, error


def test_ctrl_c_that_an_import_swallows_is_followed_by_one_that_ends(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    program = PROGRAM.format(folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert interrupted(process, times=2) == (130, "name: interrupted; nothing was kept\n")


def test_one_ctrl_c_ends_what_does_not_swallow_it(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ndef wait():\n    time.sleep(60)\n")
    program = PROGRAM.format(folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert interrupted(process, times=1) == (130, "name: interrupted; nothing was kept\n")


def test_the_second_ctrl_c_does_not_wait_for_a_computation(tmp_path):
    """A product of integers of 20 million digits: one instruction of Python's, of minutes."""
    (tmp_path / "slow.py").write_text("def wait():\n    n = 7 ** 30_000_000\n    n * n\n    n ** 40\n")
    program = PROGRAM.format(folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert interrupted(process, times=2) == (130, "name: interrupted; nothing was kept\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("--x: no"), 2, "name: --x: no"),
        (UsageError("top_p is 2"), 2, "name: top_p is 2"),
        (RecordError("is\nempty", "problem", 3, "f.json"), 1, "name: f.json: record 3: field 'problem': is empty"),
        (PermissionError(13, "Permission denied", "/x"), 1, "name: /x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "name: out: the disk is full; nothing was kept"),
        (FileExistsError(17, "File exists", "/x"), 1, "name: /x: is in the way, for it is not a directory"),
        (KeyboardInterrupt(), 130, "name: interrupted"),
    ],
)
def test_mistakes_are_one_line(capsys, error, code, message):
    def work():
        raise error

    handler = signal.getsignal(signal.SIGINT)
    assert command_line.run("name", work, out=Path("out")) == code
    assert capsys.readouterr().err == f"{message}\n"
    assert signal.getsignal(signal.SIGINT) is handler


def test_faults_of_ours_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command_line.run("name", lambda: 1 // 0)


def test_the_code_of_the_work_and_other_threads():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(command_line.run("name", lambda: 1)))
    thread.start()
    thread.join()
    assert (codes, command_line.run("name", lambda: None)) == ([1], 0)


def test_wrong_arguments_are_one_line(capsys):
    parser = command_line.Parser("what it does")
    command_line.add_model(parser)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([])
    assert capsys.readouterr().err.count("\n") == 1
