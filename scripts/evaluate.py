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

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vr1_jax.arguments import Asking, check_at_least, check_directory
from vr1_jax.command_line import keep_compiled_programs, run_command
from vr1_jax.errors import UsageError

if TYPE_CHECKING:
    from vr1_jax.evaluation.run import Evaluation

NEEDED = ("model", "annotations", "media_root", "frames", "out")
AS_CHOSEN = (
    *("model", "annotations", "media_root", "out", "rules"),
    *("dtype", "seed", "samples", "limit", "tensor", "rows", "force"),
)
SHOWN_PROBLEMS = 3


@dataclass(frozen=True, kw_only=True)
class Arguments(Asking):
    model: Path | None = None  # Hugging Face, converted or run directory
    annotations: Path | None = None  # records to evaluate
    media_root: Path | None = None  # directory that the records' paths are relative to
    frames: int | None = None  # most frames of a video; the paper's are 16, 32, 64
    out: Path | None = None  # JSON to write
    compare: tuple[Path, ...] = ()  # two outputs to tell apart
    json: bool = False  # the comparison as JSON
    max_new_tokens: int = 1024  # most tokens of an answer
    temperature: float = 0.01  # as in the paper
    top_p: float = 0.001  # as in the paper
    greedy: bool = False  # always the most likely token
    seed: int = 0  # of the drawing
    # Answers to each question, for pass@k and maj@k; draw them with --temperature 1 --top-p 0.95.
    samples: int = 1
    rules: Literal["fixed", "upstream"] = "fixed"  # of scoring; upstream's have quirks
    limit: int | None = None  # only the first records
    dtype: Literal["float32", "bfloat16"] | None = None  # None: bfloat16, on a CPU float32
    tensor: int = 1  # devices that share the weights
    rows: int | None = None  # prompts at once on a device; None: by its memory
    workers: int | None = None  # processes that decode media; None: one a CPU, to 16
    force: bool = False  # replace --out, and answers of other settings beside it

    def __post_init__(self):
        if self.compare:
            if len(self.compare) != 2:
                raise UsageError(f"--compare names {len(self.compare)} files; it takes two outputs to tell apart")
            return
        if missing := [f"--{name.replace('_', '-')}" for name in NEEDED if getattr(self, name) is None]:
            raise UsageError(f"required: {', '.join(missing)}; or --compare")
        if self.json:
            raise UsageError("--json goes with --compare")
        super().__post_init__()
        if not (math.isfinite(self.temperature) and math.isfinite(self.top_p)):
            raise UsageError("--temperature and --top-p must be finite numbers")
        if self.samples > 1 and (self.greedy or self.temperature == 0):
            raise UsageError(f"greedy decoding gives the same answer {self.samples} times; leave out --samples")
        check_at_least(1, self, "samples", "limit", "tensor", "rows", "workers")
        check_directory("--media-root", self.media_root)


def evaluation_of(chosen: Arguments) -> "Evaluation":
    from vr1_jax.data.ahead import cpu_count
    from vr1_jax.evaluation.run import Evaluation
    from vr1_jax.sampling.settings import SamplingConfig

    sampling = SamplingConfig(
        chosen.max_new_tokens, 0.0 if chosen.greedy else chosen.temperature, 1.0 if chosen.greedy else chosen.top_p
    )
    return Evaluation(
        **{name: getattr(chosen, name) for name in AS_CHOSEN},
        asked=chosen.presentation(chosen.model, evaluating=True),
        sampling=sampling,
        workers=chosen.workers or min(16, cpu_count()),
    )


def work(chosen: Arguments) -> None:
    if chosen.compare:
        return compare_files(chosen.compare, chosen.json)
    keep_compiled_programs()
    from vr1_jax.evaluation.chat import OutOfDeviceMemory
    from vr1_jax.evaluation.run import check_media, evaluate, timing_path
    from vr1_jax.files import check_output_file
    from vr1_jax.tools.compare import result_table

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


def compare_files(paths: tuple[Path, ...], as_json: bool) -> None:
    from vr1_jax.tools.compare import compare, comparison_table, read_results

    found = compare(*(read_results(path) for path in paths))
    print(json.dumps(found, indent=1) if as_json else comparison_table(found, [str(path) for path in paths]))


def main(arguments: list[str] | None = None) -> int:
    goes_on = "the same command goes on where it was"
    return run_command("evaluate", work, Arguments, arguments, __doc__, interrupted=goes_on)


if __name__ == "__main__":
    sys.exit(main())
