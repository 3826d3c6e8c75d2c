"""GRPO against T-GRPO, each placement of the bonus, in a world with a static shortcut: numbers and a picture.

python scripts/shortcut_study.py [--out runs/shortcut] [--seeds 0 1 2] [--steps N]

Runs that are done are not repeated: the same command goes on after an interruption, or adds seeds.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np

from vr1_jax import command_line

REPOSITORY = Path(__file__).resolve().parents[1]
ORDERED = ("blinks", "spelled_word")  # the world's tasks that need order, and hold the shortcut
MEASURES = {
    "frames in order": [f"heldout_accuracy/built-in/{task}" for task in ORDERED],
    "frames shuffled": [f"heldout_accuracy_shuffled/built-in/{task}" for task in ORDERED],
    "the shortcut lies": [f"heldout_accuracy/misleading/{task}" for task in ORDERED],
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs/shortcut", help="default: runs/shortcut")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of world, weights and sampling")
    parser.add_argument("--sft-steps", type=int, help="fewer for a quick look")
    parser.add_argument("--steps", type=int, help="of each arm")
    chosen = parser.parse_args(arguments)
    command_line.keep_compiled_programs()
    logging.basicConfig(format="%(message)s")

    sys.path.insert(0, str(REPOSITORY / "configs"))
    import demo
    import shortcut

    from vr1_jax.training.cold_start import cold_start
    from vr1_jax.training.loop import train
    from vr1_jax.training.metrics import read_metrics

    results: dict[str, list[dict[str, float]]] = {}
    for seed in chosen.seeds:
        out = chosen.out / f"seed{seed}"
        _write_world(out / "world", shortcut.WORLD, seed)
        sft = demo.placed(shortcut.get_sft_config(), out, seed, chosen.sft_steps)
        if not cold_start(sft, () if chosen.sft_steps else demo.SFT_STOPS, demo.BEGINNERS_LOSS):
            return 1  # stopped by a signal
        runs = {"after SFT": sft}
        for arm in shortcut.ARMS:
            runs[arm] = demo.placed(shortcut.get_config(arm), out, seed, chosen.steps)
            if int(train(runs[arm]).step) < runs[arm].steps:
                return 1
        for name, config in runs.items():
            measured = _measured(read_metrics(Path(config.run))[-1])
            results.setdefault(name, []).append(measured)
            print(f"seed {seed}, {name}: " + ", ".join(f"{m} {x:.3f}" for m, x in measured.items()), flush=True)
    text = json.dumps({"seeds": chosen.seeds, "results": results}, indent=1)
    (chosen.out / "results.json").write_text(text + "\n", encoding="utf-8")
    print(_table(results))
    _draw(results, chosen.out / "shortcut.png")
    print(f"{chosen.out / 'shortcut.png'}, {chosen.out / 'results.json'}")
    return 0


def _write_world(out: Path, world, seed: int) -> None:
    """Of the misleading questions only those that a colour can mislead in."""
    import dataclasses

    from vr1_jax.data.synthetic import write_world

    if out.exists():
        return
    write_world(out, dataclasses.replace(world, seed=seed))
    path = out / "misleading.json"
    records = [r for r in json.loads(path.read_text("utf-8")) if r["data_source"].split("/")[1] in ORDERED]
    path.write_text(json.dumps(records), encoding="utf-8")


def _measured(last: dict[str, float]) -> dict[str, float]:
    """Held-out accuracies of a run's last step."""
    return {name: float(np.mean([last[key] for key in keys])) for name, keys in MEASURES.items()}


def _table(results: dict[str, list[dict[str, float]]]) -> str:
    """Mean over seeds, and the standard deviation between them."""
    lines = [" " * 28 + "".join(f"{name:>20s}" for name in MEASURES)]
    for arm, rows in results.items():
        values = np.array([[row[name] for name in MEASURES] for row in rows])
        cells = zip(values.mean(0), values.std(0, ddof=1 if len(values) > 1 else 0), strict=True)
        lines.append(f"{arm:28s}" + "".join(f"{f'{mean:.3f} ± {spread:.3f}':>20s}" for mean, spread in cells))
    return "\n".join(lines)


def _draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(MEASURES), figsize=(13, 4.2), sharey=True, layout="constrained")
    figure.suptitle("A world with a static shortcut: held-out accuracy on questions that need order")
    for axis, name in zip(axes, MEASURES, strict=True):
        for place, rows in enumerate(results.values()):
            values = [row[name] for row in rows]
            axis.barh(place, np.mean(values), color=f"C{place}", alpha=0.35)
            axis.plot(values, [place] * len(values), "o", color=f"C{place}")
        axis.set_title(name)
        axis.set_xlim(0, 1)
        axis.set_yticks(range(len(results)), list(results))
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
