"""Evaluate a model on a benchmark, or tell two results apart.

    python scripts/evaluate.py --model DIR --annotations eval_mvbench.json --media-root media --frames 16 --out F
    python scripts/evaluate.py --compare A.json B.json

Annotations are Video-R1's evaluation files (VSI-Bench, VideoMMMU, MMVU, MVBench, TempCompass, VideoMME) or any
records of that form. The output has their shape ("results" with output, prediction, reward, correct; "final_acc")
and a passport: model hash, prompt, frames, decoding, versions. Stopped by anything at all, the same command goes
on where it was and ends with the same file; answers wait beside it in F.answers.jsonl until then.
A record that cannot be asked (a missing or broken video) counts as wrong and is listed.
Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vr1_jax import command_line

if TYPE_CHECKING:
    from vr1_jax.evaluation.benchmark_run import Evaluation

NEEDED = ("model", "annotations", "media_root", "frames", "out")
AS_CHOSEN = (
    *("model", "annotations", "media_root", "out", "rules"),
    *("dtype", "seed", "samples", "limit", "tensor", "rows", "force"),
)
SHOWN_PROBLEMS = 3


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="Hugging Face, converted or run directory")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="records to evaluate")
    parser.add_argument("--media-root", type=Path, metavar="DIR", help="what the records' paths are relative to")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="most frames of a video; the paper's are 16, 32, 64"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two outputs to tell apart")
    parser.add_argument("--json", action="store_true", help="the comparison as JSON")
    asking = parser.add_argument_group("how it is asked")
    command_line.add_asking(asking, frames=False)
    asking.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="default 1024")
    asking.add_argument(
        "--temperature", type=float, default=0.01, metavar="X", help="default 0.01, as in the paper"
    )
    asking.add_argument("--top-p", type=float, default=0.001, metavar="X", help="default 0.001, as in the paper")
    asking.add_argument("--greedy", action="store_true", help="always the most likely token")
    asking.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing; default 0")
    asking.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="answers to each question, for pass@k and maj@k; draw them with --temperature 1 --top-p 0.95",
    )
    asking.add_argument(
        "--rules", choices=("fixed", "upstream"), default="fixed", help="of scoring; upstream's have quirks"
    )
    asking.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    work = parser.add_argument_group("how it is computed")
    work.add_argument("--dtype", choices=("float32", "bfloat16"), help="default bfloat16, on a CPU float32")
    work.add_argument(
        "--tensor", type=int, default=1, metavar="N", help="devices that share the weights; default 1"
    )
    work.add_argument("--rows", type=int, metavar="N", help="prompts at once on a device; default by its memory")
    work.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode media; default one a CPU, to 16"
    )
    work.add_argument(
        "--force", action="store_true", help="replace --out, and answers of other settings beside it"
    )
    chosen = parser.parse_args(arguments)
    if chosen.compare is None and (missing := [name for name in NEEDED if getattr(chosen, name) is None]):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        parser.error(f"the following arguments are required: {names}; or --compare")
    if chosen.json and chosen.compare is None:
        parser.error("--json goes with --compare")
    if not (math.isfinite(chosen.temperature) and math.isfinite(chosen.top_p)):
        parser.error("--temperature and --top-p must be finite numbers")
    if chosen.samples > 1 and (chosen.greedy or chosen.temperature == 0):
        parser.error(f"greedy decoding gives the same answer {chosen.samples} times; leave out --samples")
    for name in ("samples", "limit", "tensor", "rows", "workers"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}; it must be at least 1")
    return chosen


def evaluation_of(chosen: argparse.Namespace) -> "Evaluation":
    from vr1_jax.data.ahead import cpu_count
    from vr1_jax.evaluation.benchmark_run import Evaluation
    from vr1_jax.sampling.settings import SamplingConfig

    sampling = SamplingConfig(
        chosen.max_new_tokens, 0.0 if chosen.greedy else chosen.temperature, 1.0 if chosen.greedy else chosen.top_p
    )
    return Evaluation(
        **{name: getattr(chosen, name) for name in AS_CHOSEN},
        asked=command_line.asked(chosen, evaluating=True),
        sampling=sampling,
        workers=chosen.workers or min(16, cpu_count()),
    )


def work(chosen: argparse.Namespace) -> None:
    command_line.keep_compiled_programs()
    from vr1_jax.evaluation.benchmark_run import check_media, evaluate, timing_path
    from vr1_jax.evaluation.chat_model import OutOfDeviceMemory
    from vr1_jax.files import check_output_file
    from vr1_jax.tools.compare.tables import result_table

    command_line.check_media_root(chosen.media_root)
    check_output_file(chosen.out, force=chosen.force, inputs=(chosen.annotations,))
    evaluation = evaluation_of(chosen)
    if problems := check_media(evaluation):
        print(f"evaluate: records that cannot be asked and will count as wrong: {len(problems)}", file=sys.stderr)
        for problem in problems[:SHOWN_PROBLEMS]:
            print(f"  {problem}", file=sys.stderr)
    try:
        content, timing = evaluate(evaluation)
    except OutOfDeviceMemory as error:
        raise OutOfDeviceMemory(f"{error}; or fewer --rows") from error
    print(result_table(content["summary"], content["final_acc"][0], evaluation.asked.frames.max_frames))
    print(
        f"{timing['questions']} answered in {timing['seconds']:.0f} s, "
        f"{100 * timing['share_waiting_for_media']:.1f}% of it waiting for media ({timing_path(evaluation.out)})"
    )
    print(evaluation.out)


def compare_files(paths: list[Path], as_json: bool) -> None:
    from vr1_jax.tools.compare.comparison import compare, read_results
    from vr1_jax.tools.compare.tables import comparison_table

    found = compare(*(read_results(path) for path in paths))
    print(json.dumps(found, indent=1) if as_json else comparison_table(found, [str(path) for path in paths]))


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    if chosen.compare is not None:
        return command_line.run("evaluate", lambda: compare_files(chosen.compare, chosen.json))
    interrupted = "the same command goes on where it was"
    return command_line.run("evaluate", lambda: work(chosen), out=chosen.out, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
