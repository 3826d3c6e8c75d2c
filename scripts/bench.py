"""Measure the speed of this machine at this program's work, against what its device can do at best.

    python scripts/bench.py step    --size 3b         a T-GRPO step by phase: rollout, reward, reference, update
    python scripts/bench.py rollout --size 7b         sampling alone: reading prompts, decoding
    python scripts/bench.py compile --size 7b         compile times and memory; nothing is allocated
    python scripts/bench.py load    --model DIR       weights from disk onto the devices
    python scripts/bench.py data    --config FILE     batches out of the data pipeline

Weights are random and inputs built in. A table comes first; the last line is one JSON object with everything.
"""

import argparse
import json
import sys
from pathlib import Path

from vr1_jax.errors import UsageError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

MEASURED = ("step", "rollout", "reference", "update", "sft")
SIZES = ("tiny", "30m", "3b", "7b", "32b", "72b")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*MEASURED, "compile", "load", "data"))
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--size", choices=SIZES, help="a built-in model with its step (default: tiny)")
    subject.add_argument("--config", type=Path, metavar="FILE", help="a training config: its model and shapes")
    parser.add_argument("--kind", choices=("video", "image", "text"), default="video", help="of --config's steps")
    parser.add_argument("--model", type=Path, metavar="DIR", help="for load: instead of random weights")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measured, after one to warm up")
    shapes = parser.add_argument_group("shapes", "instead of the size's or the config's own")
    for name in ("prompts", "slices", "patches", "tokens", "group", "shuffled-group", "answer"):
        shapes.add_argument(f"--{name}", type=int, metavar="N")
    shapes.add_argument("--microbatches", type=int, metavar="N")
    shapes.add_argument("--tensor", type=int, metavar="N", help="devices that share a layer in training")
    shapes.add_argument("--rollout-tensor", type=int, metavar="N", help="the same in sampling")
    shapes.add_argument("--dtype", choices=("float32", "bfloat16"))
    chosen = parser.parse_args(arguments)
    if chosen.repeats < 1:
        parser.error("--repeats must be at least 1")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)

    from vr1_jax.tools.benchmark.command import run

    try:
        print(json.dumps(run(chosen), allow_nan=False))
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"bench: {chosen.what} with these options needs {error.name}: pip install -e .", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
