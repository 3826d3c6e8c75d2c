"""What the demo does beside training: SFT up to a level, and curves of what was learned."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vr1_jax.config import TrainConfig
from vr1_jax.tools.world.scenes import ORDERED
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics

_SMOOTH = 9  # steps in the running mean drawn over the single ones


def cold_start(config: TrainConfig, stops: Sequence[int], heldout_loss: float) -> bool:
    """SFT to the first of `stops` with a small enough held-out loss, else to the end. False if interrupted.

    Up to a level, not for a number of steps: from a start that differs, T-GRPO would learn different things.
    """
    for steps in (*stops, config.steps):
        if int(train(dataclasses.replace(config, steps=steps)).step) < steps:
            return False
        if read_metrics(Path(config.run))[-1]["heldout_loss"] < heldout_loss:
            break
    return True


def draw_curves(out: Path, sft: Path, rl: Path) -> tuple[list[Path], str]:
    """learning.png, and a few sentences with the numbers that matter."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sft_lines, rl_lines = read_metrics(sft), read_metrics(rl)
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    figure.suptitle("SFT, then T-GRPO, on the built-in world")
    _curve(axes[0, 0], sft_lines, {"loss": "loss"}, "SFT: loss on answers")
    _curve(axes[0, 1], rl_lines, {"reward": "reward"}, "T-GRPO: reward")
    named = {"accuracy": "all", "accuracy_video": "videos", "accuracy_shuffled": "videos, frames shuffled"}
    _curve(axes[0, 2], rl_lines, named, "T-GRPO: accuracy while training")
    _heldout(axes[1, 0], sft_lines, rl_lines)
    _curve(axes[1, 1], rl_lines, {"length": "tokens"}, "T-GRPO: length of answers")
    _phases(axes[1, 2], rl_lines)
    path = out / "learning.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return [path], _summary(sft_lines, rl_lines)


def _curve(axis, lines: list[dict], names: dict[str, str], title: str) -> None:
    for name, label in names.items():
        points = [(line["step"] + 1, line[name]) for line in lines if line.get(name) is not None]
        if not points:
            continue
        steps, values = np.array(points).T
        (drawn,) = axis.plot(steps, values, alpha=0.25)
        width = min(_SMOOTH, len(values))
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        axis.plot(steps[width - 1 :], mean, color=drawn.get_color(), label=label)
    axis.set_title(title)
    axis.set_xlabel("step")
    if len(names) > 1:
        axis.legend()


def _heldout(axis, sft_lines: list[dict], rl_lines: list[dict]) -> None:
    """The SFT model's result stands at step 0."""
    after_sft = [dict(line, step=-1) for line in sft_lines if "heldout_accuracy" in line][-1:]
    lines = after_sft + [line for line in rl_lines if "heldout_accuracy" in line]
    steps = [line["step"] + 1 for line in lines]
    for label, keys in _heldout_rows(lines[0]).items():
        values, errors = zip(*(_mean(line, keys) for line in lines), strict=True)
        axis.errorbar(steps, values, errors, marker="o", label=label.strip(), capsize=3)
    axis.set_title("held-out accuracy (step 0: after SFT)")
    axis.set_xlabel("step")
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize="small")


def _heldout_rows(line: dict) -> dict[str, list[str]]:
    """Names of held-out accuracies by what is shown of them."""
    sources = [key.split("/", 1)[1] for key in line if key.startswith("heldout_accuracy/") and "_error" not in key]
    needs_order = [name for name in sources if name.split("/")[-1] in {task.name for task in ORDERED}]
    others = [name for name in sources if name not in needs_order]
    return {
        "all questions": ["heldout_accuracy"],
        "need order": [f"heldout_accuracy/{name}" for name in needs_order],
        "  their frames shuffled": [f"heldout_accuracy_shuffled/{name}" for name in needs_order],
        "need none": [f"heldout_accuracy/{name}" for name in others],
        "all, blind": ["heldout_accuracy_blind"],
    }


def _mean(line: dict, keys: list[str]) -> tuple[float, float]:
    """Of equally many questions each, with its standard error."""
    errors = np.array([line[f"{key}_error"] for key in keys])
    return float(np.mean([line[key] for key in keys])), float(np.sqrt((errors**2).sum()) / len(keys))


def _phases(axis, lines: list[dict]) -> None:
    names = sorted({name for line in lines for name in line if name.startswith("seconds_")})
    medians = [float(np.median([line.get(name, 0.0) for line in lines])) for name in names]
    axis.barh([name.removeprefix("seconds_") for name in names], medians)
    axis.set_title("median seconds of a step by phase")


def _summary(sft_lines: list[dict], rl_lines: list[dict]) -> str:
    before = [line for line in sft_lines if "heldout_accuracy" in line][-1]
    after = [line for line in rl_lines if "heldout_accuracy" in line][-1]
    rows = [("held-out accuracy", "after SFT", "after T-GRPO")]
    for label, keys in _heldout_rows(before).items():
        cells = (f"{value:.3f} ± {error:.3f}" for value, error in (_mean(line, keys) for line in (before, after)))
        rows.append((f"  {label}", *cells))
    rows.append(("sampled while training", "first steps", "last steps"))
    for name, label in (("accuracy_video", "  videos"), ("accuracy_shuffled", "  videos, frames shuffled")):
        values = [line[name] for line in rl_lines if name in line]
        if values:
            part = max(1, min(20, len(values) // 4))
            rows.append((label, f"{np.mean(values[:part]):.3f}", f"{np.mean(values[-part:]):.3f}"))
    return "\n".join(f"{label:28s}{first:>16s}{second:>16s}".rstrip() for label, first, second in rows)
