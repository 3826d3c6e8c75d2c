"""Score given answers: the log-prob of every token of a completion after its record's training prompt.

    python scripts/score.py --model DIR --records answers.jsonl --media-root media --out scores.jsonl

Each input line is a training record with one more field, "completion": TEXT. For the line numbered i (from 0;
blank lines count but give nothing) the output has

    {"index": i, "prompt_tokens": n, "token_ids": [...], "logprobs": [...], "error": null}

in the order of the input: natural log-probs of the completion's tokens, the closing <|im_end|> included. A line
that cannot be scored has the reason as "error" and empty lists. Exit code: 0 if any line was scored, 1 if none
could be, 2 for wrong usage.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vr1_jax.data.frames import FrameBudget


def run(chosen: argparse.Namespace, budget: "FrameBudget") -> tuple[int, int]:
    """Writes the output; how many lines were scored, and how many were not."""
    from vr1_jax.data.records import RecordError
    from vr1_jax.evaluation.chat_model import load_chat_model
    from vr1_jax.evaluation.output import Progress, whole_file
    from vr1_jax.evaluation.score_file import read_lines, score_file

    total = sum(1 for _ in read_lines(chosen.records))
    if not total:
        raise RecordError("holds no records", file=str(chosen.records))
    chat = load_chat_model(chosen.model, dtype=chosen.dtype, rule=chosen.positions)
    failed = 0
    with whole_file(chosen.out) as out, Progress("scored", total) as progress:
        for result in score_file(chat, chosen.records, chosen.media_root, budget):
            out.write(json.dumps(result, allow_nan=False) + "\n")
            failed += result["error"] is not None
            progress.advance()
    return total - failed, failed


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="Hugging Face, converted or run directory"
    )
    parser.add_argument("--records", type=Path, required=True, metavar="FILE", help="JSON lines with completions")
    parser.add_argument(
        "--media-root", type=Path, required=True, metavar="DIR", help="what the records' paths are relative to"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines to write")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="most frames of a video; default as training: 2 a second, 4 to 16"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of weights and arithmetic; float32 (default) is exact, bfloat16 takes half the memory",
    )
    parser.add_argument(
        "--positions",
        choices=("published", "transformers5"),
        default="published",
        help="how positions go on after a video: as the model was trained (default), or as transformers 5 has it",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing --out")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    from vr1_jax.data.frames import TRAINING_BUDGET
    from vr1_jax.data.records import RecordError
    from vr1_jax.data.tokenizer import TokenizerError
    from vr1_jax.evaluation.chat_model import CheckpointError, OutOfDeviceMemory
    from vr1_jax.evaluation.output import OutputExists, check_output
    from vr1_jax.evaluation.prompting import frame_budget

    try:
        budget = frame_budget(chosen.frames, TRAINING_BUDGET)
    except ValueError as error:
        return fail(f"--frames: {error}", 2)
    if not chosen.media_root.is_dir():
        return fail(f"{chosen.media_root}: no such directory; --media-root holds the records' media", 2)
    try:
        check_output(chosen.out, force=chosen.force, inputs=(chosen.records,))
        scored, failed = run(chosen, budget)
    except OutputExists as error:
        return fail(str(error), 2)
    except (RecordError, CheckpointError, TokenizerError, OutOfDeviceMemory) as error:
        return fail(str(error), 1)
    except OSError as error:
        return fail(f"{error.filename or chosen.out}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return fail("interrupted; nothing was kept", 1)
    errors = "no errors" if not failed else f"{failed} error{'s' * (failed > 1)}"
    print(f"{chosen.out}: {scored} of {scored + failed} scored, {errors}")
    return 0 if scored else 1


def fail(message: str, code: int) -> int:
    print(f"score: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
