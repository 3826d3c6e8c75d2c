"""Export a checkpoint as a Hugging Face directory, for transformers, vLLM and everything else that reads one.

    python convert/flax_to_hf.py --checkpoint runs/tgrpo --out Qwen2.5-VL-7B-TGRPO

Key names, config layout and file names are the published ones, which old and new releases of both read.
"""

import os
import sys
from pathlib import Path

from vr1_jax import command_line


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.Parser(__doc__)
    parser.add_argument(
        "--checkpoint",
        type=command_line.existing_directory,
        required=True,
        metavar="DIR",
        help="a converted model or a training run",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to create")
    parser.add_argument("--step", type=int, metavar="N", help="default: the latest")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: the torch_dtype of the model that training started from",
    )
    parser.add_argument(
        "--max-shard-size",
        type=command_line.byte_size,
        default="5GB",
        metavar="SIZE",
        help="such as 5GB (default)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export at --out")
    args = parser.parse_args(arguments)

    def work() -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed, and one may be busy
        from vr1_jax.weights.conversion import flax_to_hf

        flax_to_hf(
            args.checkpoint,
            args.out,
            step=args.step,
            dtype=args.dtype,
            max_shard_bytes=args.max_shard_size,
            force=args.force,
        )
        print(f"wrote {args.out}")

    return command_line.run("flax_to_hf", work, out=args.out, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
