"""GRPO against T-GRPO, each placement of the bonus, in a world with a static shortcut: numbers and a picture.

python scripts/shortcut_study.py [--out runs/shortcut] [--seeds 0 1 2] [--steps N]

Runs that are done are not repeated: the same command goes on after an interruption, or adds seeds.
"""

import importlib.util
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vr1_jax.arguments import check_at_least
from vr1_jax.command_line import keep_compiled_programs, run_command
from vr1_jax.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[1]
TASKS = ("blinks", "spelled_word")  # those of the world that need order, and have the shortcut
MEASURES = {
    "the colour is right": "heldout_accuracy/built-in/",
    "the same, frames shuffled": "heldout_accuracy_shuffled/built-in/",
    "the colour lies": "heldout_accuracy/misleading/",
}
SIGNAL = "temporal_signal"  # how much the bonus changed the advantages, on average over the run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    out: Path = REPOSITORY / "runs/shortcut"  # directory of the runs, the numbers and the picture
    seeds: tuple[int, ...] = (0, 1, 2)  # of world, weights and sampling
    sft_steps: int | None = None  # fewer for a quick look
    steps: int | None = None  # of each arm

    def __post_init__(self):
        check_at_least(1, self, "sft_steps", "steps")
        if not self.seeds or min(self.seeds) < 0:
            raise UsageError(f"--seeds {' '.join(map(str, self.seeds))}: at least one, and none negative")


def main(arguments: list[str] | None = None) -> int:
    goes_on = "the same command goes on"
    return run_command("shortcut_study", study, Arguments, arguments, __doc__, interrupted=goes_on)


def study(chosen: Arguments) -> int:
    keep_compiled_programs()
    logging.basicConfig(format="%(message)s")
    if importlib.util.find_spec("matplotlib") is None:
        print("shortcut_study: the picture needs matplotlib: pip install -e '.[demo]'", file=sys.stderr)
        return 1

    sys.path.insert(0, str(REPOSITORY / "configs"))
    import demo
    import shortcut

    from vr1_jax.training.loop import train
    from vr1_jax.training.metrics import read_metrics

    results: dict[str, list[dict[str, float]]] = {}
    for seed in chosen.seeds:
        out = chosen.out / f"seed{seed}"
        _write_world(out / "world", shortcut.WORLD, seed)
        sft = demo.placed(shortcut.get_sft_config(), out, seed, chosen.sft_steps)
        runs = {"after SFT": sft}
        runs |= {arm: demo.placed(shortcut.get_config(arm), out, seed, chosen.steps) for arm in shortcut.ARMS}
        for name, config in runs.items():
            if int(train(config).step) < config.steps:
                return 1  # stopped by a signal
            results.setdefault(name, []).append(_measured(read_metrics(Path(config.run))))
        print(f"\nafter seed {seed}\n{_table(results)}\n", flush=True)
    text = json.dumps({"seeds": list(chosen.seeds), "results": results}, indent=1)
    (chosen.out / "results.json").write_text(text + "\n", encoding="utf-8")
    _draw(results, chosen.out / "shortcut.png")
    print(f"{chosen.out / 'shortcut.png'}, {chosen.out / 'results.json'}")
    return 0


def _write_world(out: Path, world, seed: int) -> None:
    """Also cue_is_right.json, for SFT. Of misleading.json only the questions that a colour can mislead in stay."""
    import dataclasses

    from vr1_jax.tools.world.write import write_world

    if out.exists():
        return
    aside = out.with_name(f".{out.name}.partial")
    write_world(aside, dataclasses.replace(world, seed=seed), force=True)

    def pick(source: str, misleading: bool, to: str) -> None:
        records = json.loads((aside / source).read_text("utf-8"))
        kept = [record for record in records if record["data_source"].startswith("misleading/") == misleading]
        (aside / to).write_text(json.dumps(kept), encoding="utf-8")

    pick("train.json", False, "cue_is_right.json")
    pick("misleading.json", True, "misleading.json")
    aside.rename(out)


def _measured(steps: list[dict[str, float]]) -> dict[str, float]:
    """Held-out accuracies of a run's last step, by task, and the bonus's effect on all steps with a video."""
    found = {f"{task}, {name}": steps[-1][key + task] for task in TASKS for name, key in MEASURES.items()}
    signals = [step[SIGNAL] for step in steps if SIGNAL in step]
    return found | ({SIGNAL: float(np.mean(signals))} if signals else {})


def _table(results: dict[str, list[dict[str, float]]]) -> str:
    """Mean over seeds, and the standard deviation between them."""
    lines = []
    for name in (*(f"{task}, {name}" for task in TASKS for name in MEASURES), SIGNAL):
        lines.append(name)
        for arm, rows in results.items():
            if values := [row[name] for row in rows if name in row]:
                spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                lines.append(f"    {arm:28s}{np.mean(values):.3f}{spread}")
    return "\n".join(lines)


def _draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = {"figsize": (13, 6), "sharex": True, "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(len(TASKS), len(MEASURES), **size)
    figure.suptitle("A world with a static shortcut: held-out accuracy, mean and every seed")
    for row, task in zip(axes, TASKS, strict=True):
        row[0].set_ylabel(task)
        for axis, name in zip(row, MEASURES, strict=True):
            for place, found in enumerate(results.values()):
                values = [each[f"{task}, {name}"] for each in found]
                axis.barh(place, np.mean(values), color=f"C{place}", alpha=0.35)
                axis.plot(values, [place] * len(values), "o", color=f"C{place}", clip_on=False)
            axis.set_xlim(0, 1)
            axis.set_yticks(range(len(results)), list(results))
    for axis, name in zip(axes[0], MEASURES, strict=True):
        axis.set_title(name)
    axes[0, 0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
