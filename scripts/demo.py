"""The main job on built-in data: write a small world of videos, SFT, T-GRPO, export, curves and a report.

python scripts/demo.py [--out runs/demo] [--seed 0]
"""

import dataclasses
import importlib.util
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vr1_jax.arguments import check_at_least
from vr1_jax.command_line import keep_compiled_programs, run_command
from vr1_jax.errors import UsageError

if TYPE_CHECKING:
    from vr1_jax.config import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
SMOOTH = 9  # steps in the running mean drawn over the single ones


@dataclass(frozen=True, kw_only=True)
class Arguments:
    out: Path | None = None  # directory to create; None: runs/demo
    seed: int = 0  # of the world, the weights and the sampling
    sft_steps: int | None = None  # fewer for a quick look
    rl_steps: int | None = None  # fewer for a quick look
    force: bool = False  # replace the directory if it exists

    def __post_init__(self):
        check_at_least(0, self, "seed")
        check_at_least(1, self, "sft_steps", "rl_steps")


def main(arguments: list[str] | None = None) -> int:
    return run_command("demo", make, Arguments, arguments, __doc__, interrupted="begin again with --force")


def make(chosen: Arguments) -> int:
    keep_compiled_programs()
    logging.basicConfig(format="%(message)s")  # other packages: warnings only
    logging.getLogger("vr1_jax").setLevel(logging.INFO)

    sys.path.insert(0, str(REPOSITORY / "configs"))
    import demo

    out = chosen.out or REPOSITORY / demo.RUNS
    if out.exists():
        if not chosen.force:
            raise UsageError(f"{out} exists; --force replaces it")
        if not (out / "world").is_dir():
            raise UsageError(f"{out} is not an earlier demo; nothing was removed")
        shutil.rmtree(out)
    if importlib.util.find_spec("matplotlib") is None:
        print("demo: the curves need matplotlib: pip install -e '.[demo]'", file=sys.stderr)
        return 1
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"\n[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    from vr1_jax.tools.report.write import write_report
    from vr1_jax.tools.world.write import write_world
    from vr1_jax.training.loop import train
    from vr1_jax.training.metrics import read_metrics
    from vr1_jax.weights.conversion import flax_to_hf

    say("writing a world of short videos and images, with questions about them")
    counts = write_world(out / "world", dataclasses.replace(demo.WORLD, seed=chosen.seed))
    print(", ".join(f"{count} {split} questions" for split, count in counts.items()))

    sft = demo.placed(demo.get_sft_config(), out, chosen.seed, chosen.sft_steps)
    rl = demo.placed(demo.get_config(), out, chosen.seed, chosen.rl_steps)
    say("SFT cold start of a model of one million random weights: it learns to look and the form of an answer")
    if not cold_start(sft, () if chosen.sft_steps else demo.SFT_STOPS, demo.BEGINNERS_LOSS):
        return 1  # stopped by a signal
    say("T-GRPO: it learns from rewards alone; ordered and shuffled frames compared at every step")
    if int(train(rl).step) < rl.steps:
        return 1
    say("exporting to Hugging Face format")
    flax_to_hf(Path(rl.run), out / "huggingface", dtype="float32")
    say("drawing curves and writing the report")
    sft_lines, rl_lines = read_metrics(Path(sft.run)), read_metrics(Path(rl.run))
    draw_curves(out / "learning.png", sft_lines, rl_lines)
    write_report(Path(rl.run), out / "report.html")
    print(summarise(sft_lines, rl_lines))
    say(f"done. Look at {out / 'learning.png'}, {out / 'report.html'}")
    return 0


def cold_start(config: "TrainConfig", stops: Sequence[int], heldout_loss: float) -> bool:
    """SFT to the first of `stops` with a small enough held-out loss, else to the end. False if interrupted.

    Up to a level, not for a number of steps: from a start that differs, T-GRPO would learn different things.
    """
    from vr1_jax.training.loop import train
    from vr1_jax.training.metrics import read_metrics

    for steps in (*stops, config.steps):
        if int(train(dataclasses.replace(config, steps=steps)).step) < steps:
            return False
        if read_metrics(Path(config.run))[-1]["heldout_loss"] < heldout_loss:
            break
    return True


def draw_curves(path: Path, sft_lines: list[dict], rl_lines: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    figure.suptitle("SFT, then T-GRPO, on the built-in world")
    draw_curve(axes[0, 0], sft_lines, {"loss": "loss"}, "SFT: loss on answers")
    draw_curve(axes[0, 1], rl_lines, {"reward": "reward"}, "T-GRPO: reward")
    named = {"accuracy": "all", "accuracy_video": "videos", "accuracy_shuffled": "videos, frames shuffled"}
    draw_curve(axes[0, 2], rl_lines, named, "T-GRPO: accuracy while training")
    draw_heldout(axes[1, 0], sft_lines, rl_lines)
    draw_curve(axes[1, 1], rl_lines, {"length": "tokens"}, "T-GRPO: length of answers")
    draw_phases(axes[1, 2], rl_lines)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curve(axis, lines: list[dict], names: dict[str, str], title: str) -> None:
    for name, label in names.items():
        points = [(line["step"] + 1, line[name]) for line in lines if line.get(name) is not None]
        if not points:
            continue
        steps, values = np.array(points).T
        (drawn,) = axis.plot(steps, values, alpha=0.25)
        width = min(SMOOTH, len(values))
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        axis.plot(steps[width - 1 :], mean, color=drawn.get_color(), label=label)
    axis.set_title(title)
    axis.set_xlabel("step")
    if len(names) > 1:
        axis.legend()


def draw_heldout(axis, sft_lines: list[dict], rl_lines: list[dict]) -> None:
    """The SFT model's result stands at step 0."""
    after_sft = [dict(line, step=-1) for line in sft_lines if "heldout_accuracy" in line][-1:]
    lines = after_sft + [line for line in rl_lines if "heldout_accuracy" in line]
    steps = [line["step"] + 1 for line in lines]
    for label, keys in heldout_rows(lines[0]).items():
        values, errors = zip(*(mean_of(line, keys) for line in lines), strict=True)
        axis.errorbar(steps, values, errors, marker="o", label=label.strip(), capsize=3)
    axis.set_title("held-out accuracy (step 0: after SFT)")
    axis.set_xlabel("step")
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize="small")


def heldout_rows(line: dict) -> dict[str, list[str]]:
    """Names of held-out accuracies by what is shown of them."""
    from vr1_jax.tools.world.scenes import ORDERED

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


def mean_of(line: dict, keys: list[str]) -> tuple[float, float]:
    """Of equally many questions each, with its standard error."""
    errors = np.array([line[f"{key}_error"] for key in keys])
    return float(np.mean([line[key] for key in keys])), float(np.sqrt((errors**2).sum()) / len(keys))


def draw_phases(axis, lines: list[dict]) -> None:
    names = sorted({name for line in lines for name in line if name.startswith("seconds_")})
    medians = [float(np.median([line.get(name, 0.0) for line in lines])) for name in names]
    axis.barh([name.removeprefix("seconds_") for name in names], medians)
    axis.set_title("median seconds of a step by phase")


def summarise(sft_lines: list[dict], rl_lines: list[dict]) -> str:
    before = [line for line in sft_lines if "heldout_accuracy" in line][-1]
    after = [line for line in rl_lines if "heldout_accuracy" in line][-1]
    rows = [("held-out accuracy", "after SFT", "after T-GRPO")]
    for label, keys in heldout_rows(before).items():
        cells = (
            f"{value:.3f} ± {error:.3f}" for value, error in (mean_of(line, keys) for line in (before, after))
        )
        rows.append((f"  {label}", *cells))
    rows.append(("sampled while training", "first steps", "last steps"))
    for name, label in (("accuracy_video", "  videos"), ("accuracy_shuffled", "  videos, frames shuffled")):
        values = [line[name] for line in rl_lines if name in line]
        if values:
            part = max(1, min(20, len(values) // 4))
            rows.append((label, f"{np.mean(values[:part]):.3f}", f"{np.mean(values[-part:]):.3f}"))
    return "\n".join(f"{label:28s}{first:>16s}{second:>16s}".rstrip() for label, first, second in rows)


if __name__ == "__main__":
    sys.exit(main())
