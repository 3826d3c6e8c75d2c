"""Score given answers: the log-prob of every token of a completion after its record's training prompt.

    python scripts/score.py --model DIR --records answers.jsonl --media-root media --out scores.jsonl

Each record is a training record with one more field, "completion": TEXT. For record i (from 0; in JSON lines the
number of the line, blank ones give nothing) the output has the line

    {"index": i, "prompt_tokens": n, "token_ids": [...], "logprobs": [...], "error": null}

in the order of the input: natural log-probs of the completion's tokens, the closing <|im_end|> included. A record
that cannot be scored has the reason as "error" and empty lists. Exit code: 0 if any record was scored, 1 if none
could be, 2 for wrong usage.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vr1_jax.arguments import Asking, check_directory
from vr1_jax.command_line import keep_compiled_programs, run_command


@dataclass(frozen=True, kw_only=True)
class Arguments(Asking):
    model: Path  # Hugging Face, converted or run directory
    records: Path  # JSON list or JSON lines with completions
    media_root: Path  # directory that the records' paths are relative to
    out: Path  # JSON lines to write
    # Of weights and arithmetic: float32 is exact, bfloat16 takes half the memory.
    dtype: Literal["float32", "bfloat16"] = "float32"
    force: bool = False  # replace an existing --out


def work(chosen: Arguments) -> int:
    keep_compiled_programs()
    check_directory("--media-root", chosen.media_root)
    asked = chosen.presentation(chosen.model)
    from vr1_jax.data.records import RecordError
    from vr1_jax.evaluation.chat import load_chat_model
    from vr1_jax.evaluation.likelihood import read_records, score_file
    from vr1_jax.files import check_output_file, whole_file
    from vr1_jax.progress import Progress

    check_output_file(chosen.out, force=chosen.force, inputs=(chosen.records,))
    total = sum(1 for _ in read_records(chosen.records))
    if not total:
        raise RecordError("holds no records", file=str(chosen.records))
    chat = load_chat_model(chosen.model, dtype=chosen.dtype, presentation=asked, scores=True)
    failed = 0
    with whole_file(chosen.out) as out, Progress("scored", total) as progress:
        for result in score_file(chat, chosen.records, chosen.media_root):
            out.write(json.dumps(result, allow_nan=False) + "\n")
            failed += result["error"] is not None
            progress.advance()
    errors = "no errors" if not failed else f"{failed} error{'s' * (failed > 1)}"
    print(f"{chosen.out}: {total - failed} of {total} scored, {errors}")
    return 0 if failed < total else 1


def main(arguments: list[str] | None = None) -> int:
    return run_command("score", work, Arguments, arguments, __doc__, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
