"""Convert a Hugging Face Qwen2.5-VL directory into a checkpoint of this program.

    python convert/hf_to_flax.py --hf Qwen2.5-VL-7B-Instruct --out checkpoints/qwen25vl_7b

Converting is optional (every `--model` also takes the Hugging Face directory); a converted directory has the
layout of a training run and can hold float32 weights.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vr1_jax.arguments import check_directory
from vr1_jax.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class Arguments:
    hf: Path  # directory with config.json and safetensors
    out: Path  # directory to create
    # None: bfloat16 if all weights are, else float32, which loses nothing.
    dtype: Literal["float32", "bfloat16"] | None = None
    force: bool = False  # replace an earlier conversion at --out

    def __post_init__(self):
        check_directory("--hf", self.hf)


def convert(chosen: Arguments) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed, and one may be busy
    from vr1_jax.weights.conversion import hf_to_flax

    hf_to_flax(chosen.hf, chosen.out, dtype=chosen.dtype, force=chosen.force)
    print(f"wrote {chosen.out}")


def main(arguments: list[str] | None = None) -> int:
    return run_command("hf_to_flax", convert, Arguments, arguments, __doc__, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
