"""Measure the speed of this machine at this program's work, against what its device can do at best.

    python scripts/bench.py step    --size 3b         a T-GRPO step by phase: rollout, reward, reference, update
    python scripts/bench.py rollout --size 7b         sampling alone: reading prompts, decoding
    python scripts/bench.py compile --size 7b         compile times and memory; nothing is allocated
    python scripts/bench.py load    --model DIR       weights from disk onto the devices
    python scripts/bench.py data    --config FILE     batches out of the data pipeline

Weights are random and inputs built in. A table comes first; the last line is one JSON object with everything.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from vr1_jax.arguments import check_at_least
from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError, UserError

Work = Literal["step", "rollout", "reference", "update", "sft", "compile", "load", "data"]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Instead of those of --size or --config."""

    prompts: int | None = None  # prompts of a step, instead of those of --size or --config; so all up to --dtype
    slices: int | None = None
    patches: int | None = None
    tokens: int | None = None
    group: int | None = None
    shuffled_group: int | None = None
    answer: int | None = None
    microbatches: int | None = None
    tensor: int | None = None  # devices that share a layer in training
    rollout_tensor: int | None = None  # the same in sampling
    dtype: Literal["float32", "bfloat16"] | None = None


@dataclass(frozen=True, kw_only=True)
class Arguments(Shapes):
    what: Annotated[Work, tyro.conf.Positional]  # what to measure
    # A built-in model with its step; None: tiny.
    size: Literal["tiny", "30m", "3b", "7b", "32b", "72b"] | None = None
    config: Path | None = None  # a training config: its model and shapes
    kind: Literal["video", "image", "text"] = "video"  # of --config's steps
    model: Path | None = None  # for load: instead of random weights
    repeats: int = 5  # measured, after one to warm up

    def __post_init__(self):
        check_at_least(1, self, "repeats")
        if self.size is not None and self.config is not None:
            raise UsageError("--config is not allowed with --size")


def measure(chosen: Arguments) -> None:
    from vr1_jax.tools.benchmark.command import run

    try:
        print(json.dumps(run(chosen), allow_nan=False))
    except ModuleNotFoundError as error:
        raise UserError(f"{chosen.what} with these options needs {error.name}: pip install -e .") from error


def main(arguments: list[str] | None = None) -> int:
    return run_command("bench", measure, Arguments, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
