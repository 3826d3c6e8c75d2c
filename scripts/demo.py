"""The main job on built-in data: write a small world of videos, SFT, T-GRPO, export, curves and a report.

python scripts/demo.py [--out runs/demo] [--seed 0]
"""

import dataclasses
import importlib.util
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vr1_jax.arguments import check_at_least
from vr1_jax.command_line import keep_compiled_programs, run_command
from vr1_jax.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[1]


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

    from vr1_jax.tools.demo import cold_start, draw_curves
    from vr1_jax.tools.report.write import write_report
    from vr1_jax.tools.world.write import write_world
    from vr1_jax.training.loop import train
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
    pictures, summary = draw_curves(out, Path(sft.run), Path(rl.run))
    write_report(Path(rl.run), out / "report.html")
    print(summary)
    say("done. Look at " + ", ".join(str(picture) for picture in [*pictures, out / "report.html"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
