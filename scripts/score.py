"""Score given answers: the log-prob of every token of a completion after its record's training prompt.

    python scripts/score.py --model DIR --records answers.jsonl --media-root media --out scores.jsonl

Each record is a training record with one more field, "completion": TEXT. For record i (from 0; in JSON lines the
number of the line, blank ones give nothing) the output has the line

    {"index": i, "prompt_tokens": n, "token_ids": [...], "logprobs": [...], "error": null}

in the order of the input: natural log-probs of the completion's tokens, the closing <|im_end|> included. A record
that cannot be scored has the reason as "error" and empty lists. Exit code: 0 if any record was scored, 1 if none
could be, 2 for wrong usage.
"""

import argparse
import json
import sys
from pathlib import Path

from vr1_jax import command_line


def work(chosen: argparse.Namespace) -> int:
    command_line.keep_compiled_programs()
    command_line.check_media_root(chosen.media_root)
    asked = command_line.asked(chosen)
    from vr1_jax.data.records import RecordError
    from vr1_jax.evaluation.chat_model import load_chat_model
    from vr1_jax.evaluation.score_file import read_records, score_file
    from vr1_jax.files import check_output_file, whole_file
    from vr1_jax.progress import Progress

    check_output_file(chosen.out, force=chosen.force, inputs=(chosen.records,))
    total = sum(1 for _ in read_records(chosen.records))
    if not total:
        raise RecordError("holds no records", file=str(chosen.records))
    chat = load_chat_model(chosen.model, dtype=chosen.dtype, presentation=asked)
    failed = 0
    with whole_file(chosen.out) as out, Progress("scored", total) as progress:
        for result in score_file(chat, chosen.records, chosen.media_root):
            out.write(json.dumps(result, allow_nan=False) + "\n")
            failed += result["error"] is not None
            progress.advance()
    errors = "no errors" if not failed else f"{failed} error{'s' * (failed > 1)}"
    print(f"{chosen.out}: {total - failed} of {total} scored, {errors}")
    return 0 if failed < total else 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    command_line.add_model(parser)
    command_line.add_records(parser, "JSON list or JSON lines with completions")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of weights and arithmetic; float32 (default) is exact, bfloat16 takes half the memory",
    )
    command_line.add_asking(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing --out")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    return command_line.run("score", lambda: work(chosen), out=chosen.out, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
