"""Convert a Hugging Face Qwen2.5-VL directory into a checkpoint of this program.

    python convert/hf_to_flax.py --hf Qwen2.5-VL-7B-Instruct --out checkpoints/qwen25vl_7b

Converting is optional (every `--model` also takes the Hugging Face directory); a converted directory has the
layout of a training run and can hold float32 weights.
"""

import os
import sys
from pathlib import Path

from vr1_jax import command_line


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.Parser(__doc__)
    parser.add_argument(
        "--hf",
        type=command_line.existing_directory,
        required=True,
        metavar="DIR",
        help="safetensors and config.json",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to create")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="default: bfloat16 if all weights are, else float32 (lossless)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier conversion at --out")
    args = parser.parse_args(arguments)

    def work() -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed, and one may be busy
        from vr1_jax.weights.conversion import hf_to_flax

        hf_to_flax(args.hf, args.out, dtype=args.dtype, force=args.force)
        print(f"wrote {args.out}")

    return command_line.run("hf_to_flax", work, out=args.out, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
