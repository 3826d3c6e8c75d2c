"""Make a chain-of-thought set: sample rationales for records with any model, keep the good ones by rules.

    python scripts/annotate.py --model DIR --records train.json --media-root media --out cot.json

Several answers are drawn to each record. One is kept if it ends, has its tags in order, is rewarded, has a
thought of fair length that does not turn in a loop, concludes what it answers, and says something new. The output
has the form of Video-R1's CoT set: the records with their "process", ready for supervised training.

Beside it stand cot.json.report.json (what was kept and dropped, by reason, with examples),
cot.json.rated.jsonl (all records with their "pass_rate", the share of answers rewarded with --min-reward or more,
which training selects by: --data.pass-rate 0.1 0.9) and cot.json.samples.jsonl (all answers).

Stopped by anything at all, the same command goes on where it was and ends with the same file; with other rules, as
--min-reward 0.8 --force, it judges the answers anew and samples nothing. A record that cannot be read is
refused once, by name, and tried again if its line is taken out of the samples.

Video-R1 drew one answer: --samples 1 --max-new-tokens 512 --prompt upstream --reward-rules upstream.

The model is asked as it was trained (its prompt, frames, images, positions and spacing of time), unless told
otherwise. --config names a Python file with get_config(), which returns an AnnotateConfig; other options
override its fields.
Exit code: 0 done, 1 failed or nothing kept, 2 wrong usage, 130 interrupted.
"""

import sys
from dataclasses import dataclass

from vr1_jax.arguments import check_directory, parse
from vr1_jax.command_line import keep_compiled_programs, run


@dataclass(frozen=True)
class Arguments:
    config: str | None = None  # a Python file with get_config()


def work(arguments: list[str]) -> None:
    chosen, overrides = parse(Arguments, arguments, add_help=False, return_unknown_args=True)
    keep_compiled_programs()
    from vr1_jax.tools.annotate.config import load_annotate_config

    settings = load_annotate_config(chosen.config, overrides, prog="annotate", description=__doc__)
    from vr1_jax.tools.annotate.run import annotate

    check_directory("--media-root", settings.media_root)
    tally = annotate(settings)
    print(tally.table())
    print(settings.out)


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    return run("annotate", lambda: work(words), interrupted="the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
