"""Watching a run: where the time went, and numbers as JSON lines, on the terminal and where else is wished."""

import contextlib
import json
import re
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vr1_jax.config import TrainConfig, WatchConfig
from vr1_jax.files import whole_file
from vr1_jax.models import flops
from vr1_jax.models.config import ModelConfig
from vr1_jax.types import Prompt

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
    with whole_file(path) as file:
        file.writelines(kept)
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


# How fast a step was: tokens a second, the share of the devices' peak that its update reached, and padding.

# Dense bf16 FLOPs a second of one device, as its manufacturer says.
PEAK_FLOPS = {
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "l40s": 362e12,
    "rtx4090": 165e12,
    "rtx5090": 210e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
}
# How jax's device_kind names TPUs and GPUs; the first that is found in it.
_KINDS = {
    **{"a100": "a100", "h100": "h100", "h200": "h200", "b200": "b200", "l40s": "l40s"},
    **{"rtx 4090": "rtx4090", "rtx 5090": "rtx5090"},
    **{"tpu v4": "v4", "tpu v5 ?(lite|e)": "v5e", "tpu v5": "v5p", "tpu v6": "v6e"},
}


def device_name(device_kind: str) -> str | None:
    """The device's name in PEAK_FLOPS, if it is there: "NVIDIA A100-SXM4-80GB" is an a100."""
    return next((name for pattern, name in _KINDS.items() if re.search(pattern, device_kind.lower())), None)


def trained_parts(config: TrainConfig) -> dict[str, bool]:
    """What `flops.update` asks about a run."""
    if config.lora.rank:
        return {"trains_vision": config.lora.vision, "adapters_only": True}
    return {"trains_vision": not config.optimizer.freeze_vision}


def speed(
    config: TrainConfig,
    model: ModelConfig,
    prompt: Prompt,
    answers: tuple[int, int],
    tokens: float,
    phases: Phases,
) -> dict[str, float]:
    """Of a step that answered (or learned) `tokens` tokens, in padded shapes `answers`: G and C.

    Model FLOPs: what the update needs, padding counted and layers that are computed again not.
    """
    seconds = phases.seconds
    rates = {"tokens_per_second": tokens / sum(seconds.values())}
    if device := device_name(jax.devices()[0].device_kind):
        batch, slices, patches, _ = prompt.patches.shape
        work = flops.Workload(batch, slices, patches, prompt.tokens.shape[1], *answers)
        once = flops.update(model, work, **trained_parts(config))
        available = seconds["update"] * PEAK_FLOPS[device] * jax.device_count()
        rates["update_mfu"] = once * config.epochs_per_batch / available
    return rates


def padding(prompt: Mapping[str, np.ndarray], answered: np.ndarray, slots: int) -> dict[str, float]:
    """Shares of a supervised batch that are computed for nothing; `slots` for each of the answers."""
    tokens = prompt["mask"].sum() + answered.sum()
    return {
        "padding_tokens": 1.0 - float(tokens) / (prompt["mask"].size + len(answered) * slots),
        "padding_patches": float((prompt["patch_windows"] < 0).mean()) if prompt["patch_windows"].size else 0.0,
    }
