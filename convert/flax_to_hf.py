"""Export a checkpoint as a Hugging Face directory, for transformers, vLLM and everything else that reads one.

    python convert/flax_to_hf.py --checkpoint runs/tgrpo --out Qwen2.5-VL-7B-TGRPO

A LoRA run's adapters are merged into its base; `--adapter` exports them alone, for PEFT.
Key names, config layout and file names are the published ones, which old and new releases of both read.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vr1_jax.arguments import check_directory
from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    checkpoint: Path  # a converted model or a training run
    out: Path  # directory to create
    step: int | None = None  # None: the latest
    # None: the torch_dtype of the model that training started from
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_shard_size: str = "5GB"  # most bytes of a file, such as 500MB
    adapter: bool = False  # of a LoRA run: only its adapters, as a PEFT directory
    force: bool = False  # replace an earlier export at --out

    def __post_init__(self):
        check_directory("--checkpoint", self.checkpoint)
        self.max_shard_bytes  # noqa: B018, checks it

    @property
    def max_shard_bytes(self) -> int:
        """Powers of ten, as Hugging Face counts."""
        size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B", self.max_shard_size.strip(), re.IGNORECASE)
        count = int(float(size[1]) * 1000 ** " KMGT".index(size[2].upper() or " ")) if size else 0
        if count < 1:
            raise UsageError(f"--max-shard-size {self.max_shard_size}: no size such as 5GB or 500MB")
        return count


def convert(chosen: Arguments) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed, and one may be busy
    from vr1_jax.weights.adapters import export_adapter
    from vr1_jax.weights.conversion import flax_to_hf

    if chosen.adapter:
        export_adapter(chosen.checkpoint, chosen.out, step=chosen.step, force=chosen.force)
    else:
        flax_to_hf(
            chosen.checkpoint,
            chosen.out,
            step=chosen.step,
            dtype=chosen.dtype,
            max_shard_bytes=chosen.max_shard_bytes,
            force=chosen.force,
        )
    print(f"wrote {chosen.out}")


def main(arguments: list[str] | None = None) -> int:
    return run_command("flax_to_hf", convert, Arguments, arguments, __doc__, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
