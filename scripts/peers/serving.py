"""A program that waits, and steps when told: so that several, each in its own process, can take turns.

Every line on standard input is a command, every line on standard output its answer in JSON.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vr1_jax.tools.benchmark.timing import Stopwatch


def serve(step: Callable[[Stopwatch], None], check: Callable[[], dict[str, float]], answers: TextIO) -> None:
    """`step` is timed; `check` computes loss and gradient on given answers, to compare programs by."""
    _answer(answers, {"ready": True})
    for command in sys.stdin:
        if command.strip() == "check":
            _answer(answers, check())
            continue
        _forget_peak_memory()
        whole, phases = Stopwatch(), Stopwatch()
        with whole("step"):
            step(phases)
        _answer(
            answers,
            {
                "seconds": whole.seconds["step"],
                "processor_seconds": whole.cpu_seconds["step"],
                "phases": phases.seconds,
                "peak_memory": peak_memory(),
            },
        )


def peak_memory() -> int:
    """Bytes of this process's memory at its largest in this step, everything that it loaded included."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _forget_peak_memory() -> None:
    """What compiling took, in the first step, is not what training takes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def own_standard_output() -> TextIO:
    """The stream for answers; whatever libraries print goes to standard error from now on."""
    answers, sys.stdout = sys.stdout, sys.stderr
    return answers


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()
