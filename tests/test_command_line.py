"""Exit codes and single lines; Ctrl-C at any moment."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import tyro
from commands import REPOSITORY

from vr1_jax import command_line
from vr1_jax.arguments import check_at_least
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


@dataclass(frozen=True)
class Inner:
    beta: float = 0.04

    def __post_init__(self):
        if self.beta < 0:
            raise UsageError("beta is negative")


@dataclass(frozen=True)
class Arguments:
    run: tyro.conf.Positional[Path]  # directory of a run
    model: Path  # a directory
    kind: Literal["video", "image"] | None = None
    answer_count: int | None = None  # at least 1
    pair: tuple[int, int] | None = None
    words: tuple[str, ...] = ()
    greedy: bool = False
    grpo: Inner = Inner()

    def __post_init__(self):
        check_at_least(1, self, "answer_count")


def run(arguments: str, **settings) -> tuple[int, tuple]:
    """The exit code, and what the work was given."""
    given = []
    code = command_line.run_command(
        "name",
        lambda *chosen: given.extend(chosen),
        Arguments,
        shlex.split(arguments),
        "What it\ndoes.",
        **settings,
    )
    return code, tuple(given)


def test_arguments_in_either_spelling():
    expected = Arguments(Path("r"), Path("m"), "image", 3, (1, 2), ("a b", "c"), True, Inner(0.5))
    for name in ("answer-count", "answer_count"):
        rest = f"--{name} 3 --pair 1 2 --words 'a b' c --greedy --grpo.beta 0.5"
        assert run(f"r --model=m --kind image {rest}") == (0, (expected,))
    assert run("r --model m --kind None --answer-count None --pair None") == (
        0,
        (Arguments(Path("r"), Path("m")),),
    )


LONG = "/" + "/".join(["a" * 60] * 4)  # longer than a terminal is wide


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: PATH, --model PATH"),
        ("r --modle m", "required: --model PATH; unknown: --modle, m"),
        ("r --model m --answer-count 0", "--answer-count is 0; it must be at least 1"),
        ("r --model m --answer-count x", "--answer-count: invalid literal for int() with base 10: 'x'"),
        (f"r --model m --kind {LONG}", f"invalid choice '{LONG}' for argument"),
        ("r --model m --grpo.beta -1", "grpo: beta is negative"),
        ("r --model m --grpo.beta x", "--grpo.beta: could not convert string to float: 'x'"),
        ("r --model m --pair 1", "--pair: ['1'] is not {None}|{INT INT}"),
        ("r --model m --kind text", "invalid choice 'text' for argument '--kind'. Expected one of ('video', "),
        ("r --model m --answr-count 3", "Unrecognized options: --answr-count, 3; is it --answer-count INT?"),
        ("r --model m --greedy yes", "Unrecognized options: yes"),
        ("r --model", "Missing value for argument '--model'"),
    ],
)
def test_wrong_usage_is_one_line(capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("COLUMNS", "50")
    assert run(arguments) == (2, ())
    error = capsys.readouterr().err
    assert error.startswith(f"name: {message}")
    assert error.endswith("; --help lists what there is\n")
    assert error.count("\n") == 1
    assert os.environ["COLUMNS"] == "50"


def test_help_shows_what_it_does_and_every_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert not stop.value.code
    shown = capsys.readouterr().out
    for text in ("What it\ndoes.\n", "--answer-count INT", "at least 1", "--greedy", "--grpo.beta FLOAT"):
        assert text in shown


def test_what_is_left_over_overrides_a_config():
    code, (chosen, rest) = run("r --model m --config f --data.frames 3 --help", overrides=True)
    assert (code, chosen) == (0, Arguments(Path("r"), Path("m")))
    assert rest == ["--config", "f", "--data.frames", "3", "--help"]


WATCH = """
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({script!r}, run_name="__main__")
finally:
    assert "jax" not in sys.modules
"""


@pytest.mark.parametrize(
    "script",
    sorted([*REPOSITORY.glob("scripts/*.py"), *REPOSITORY.glob("convert/*.py")]),
    ids=lambda path: path.stem,
)
def test_help_does_not_wait_for_jax(script):
    if script.stem == "config_reference":
        pytest.skip("has no arguments")
    done = subprocess.run([sys.executable, "-c", WATCH.format(script=str(script))], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout
