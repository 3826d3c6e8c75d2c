"""Watching a run: where the time went, and numbers as JSON lines, on the terminal and where else is wished."""

import contextlib
import json
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vr1_jax.config import WatchConfig

METRICS_FILE = "metrics.jsonl"
Sink = Callable[[int, dict[str, float]], None]


class Phases:
    """Seconds of one step by phase. Asynchronous work counts where the program waits for it."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        return {f"seconds_{name}": value for name, value in self.seconds.items()}


class MetricsLog:
    """The run's numbers. Only the first process writes; the others' calls do nothing.

    A resumed run begins at `first_step` and brings the metrics of its checkpoint, made in the step before: a kill
    may have come between the checkpoint and their line.
    """

    def __init__(
        self,
        run: Path,
        watch: WatchConfig,
        *,
        first_step: int,
        config: dict[str, Any],
        writes: bool,
        restored: dict[str, float] | None = None,
    ):
        self._writes, self._sinks = writes, contextlib.ExitStack()
        self._write_to: list[Sink] = []
        if not writes:
            return
        path = run / METRICS_FILE
        last = _forget_after(path, first_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if restored and last != first_step - 1:
            self._file.write(_line(first_step - 1, restored))
        if watch.tensorboard:
            self._write_to.append(self._sinks.enter_context(_tensorboard(run, first_step)))
        if watch.wandb_project:
            self._write_to.append(self._sinks.enter_context(_wandb(run, watch.wandb_project, config)))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if not self._writes:
            return
        self._file.write(_line(step, metrics))
        for sink in self._write_to:
            sink(step, metrics)

    def close(self) -> None:
        if self._writes:
            self._file.close()
            self._sinks.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    with (run / METRICS_FILE).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def progress_line(step: int, steps: int, metrics: dict[str, float], shown: tuple[str, ...]) -> str:
    """What was reached, then where the time went."""
    parts = [f"{name} {metrics[name]:.4g}" for name in shown if name in metrics]
    phases = {n.removeprefix("seconds_"): s for n, s in metrics.items() if n.startswith("seconds_")}
    spent = ", ".join(f"{name} {seconds:.2g}" for name, seconds in phases.items() if seconds >= 0.01)
    return f"step {step}/{steps}  " + "  ".join(parts) + f"  {sum(phases.values()):.1f} s ({spent})"


def host_memory_gb() -> float:
    """Largest resident memory of this process so far."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1e9 if sys.platform == "darwin" else 1e6)  # macOS counts bytes, Linux kilobytes


def _line(step: int, metrics: dict[str, float]) -> str:
    return json.dumps({"step": step, **{name: _number(value) for name, value in metrics.items()}}) + "\n"


def _number(value: Any) -> float | None:
    value = float(value)
    return value if value == value and abs(value) != float("inf") else None  # JSON has no nan


def _forget_after(path: Path, first_step: int) -> int | None:
    """Drop lines of steps that a resumed run will do again, and a last line that a kill cut short.

    Returns the last step that is left.
    """
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    steps = {line: json.loads(line)["step"] for line in lines if line.endswith("\n")}
    kept = [line for line, step in steps.items() if step < first_step]
    aside = path.with_suffix(".partial")
    aside.write_text("".join(kept), encoding="utf-8")
    aside.rename(path)
    return steps[kept[-1]] if kept else None


@contextlib.contextmanager
def _tensorboard(run: Path, first_step: int) -> Iterator[Sink]:
    from tensorboardX import SummaryWriter

    # Points of steps that will be done again are hidden.
    with SummaryWriter(str(run / "tensorboard"), purge_step=first_step) as writer:

        def sink(step: int, metrics: dict[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        yield sink


@contextlib.contextmanager
def _wandb(run: Path, project: str, config: dict[str, Any]) -> Iterator[Sink]:
    import wandb

    # A name is no identity: runs in other directories may have the same.
    identity = run / "wandb_id"
    if not identity.exists():
        identity.write_text(secrets.token_hex(8), encoding="utf-8")
    name = identity.read_text(encoding="utf-8")
    with wandb.init(
        project=project, name=run.name, dir=str(run), config=config, resume="allow", id=name
    ) as session:
        yield lambda step, metrics: session.log(metrics, step=step)
