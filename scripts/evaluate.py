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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
SHOWN_PROBLEMS, SHOWN_BROKEN, SHOWN_SETTING = 3, 5, 60

# What the paper reports, to stand beside one's own figures: accuracy in percent, None where it gives none.
#
# Source: Video-R1 (arXiv 2503.21776, version 3), Tables 1 and 2; frames of 256 x 28 x 28 pixels, top-p 0.001 and
# temperature 0.01. MMVU is its multiple-choice part, VideoMME is without subtitles. The paper does not say how
# it averages a benchmark that mixes accuracy and mean relative accuracy (VSI-Bench).
SOURCE = "arXiv 2503.21776v3"
BENCHMARKS = ("VSI-Bench", "VideoMMMU", "MMVU", "MVBench", "TempCompass", "VideoMME")


# Model, frames (None where the paper gives none), table, and scores in the order of BENCHMARKS.
ROWS = (
    ("GPT-4o", None, 1, (34.0, 61.2, 75.4, None, None, 71.9)),
    ("Qwen2.5-VL-7B (CoT)", 16, 1, (27.7, 47.8, 59.2, 57.4, 72.2, 53.1)),
    ("Qwen2.5-VL-7B-SFT", 16, 1, (31.8, 47.4, 61.3, 59.4, 69.2, 52.8)),
    ("Video-R1-7B", 16, 1, (34.6, 49.8, 64.2, 62.7, 72.6, 57.4)),
    ("Qwen2.5-VL-7B (CoT)", 32, 1, (30.1, 48.1, 60.0, 59.0, 72.6, 56.6)),
    ("Qwen2.5-VL-7B-SFT", 32, 1, (33.3, 49.4, 63.5, 60.5, 69.9, 55.4)),
    ("Video-R1-7B", 32, 1, (35.8, 52.3, 63.8, 63.9, 73.2, 59.3)),
    ("Qwen2.5-VL-7B (CoT)", 64, 1, (31.4, 50.4, 60.0, 59.2, 72.9, 59.6)),
    ("Qwen2.5-VL-7B-SFT", 64, 1, (34.8, 49.4, 61.6, 60.6, 70.0, 58.8)),
    ("Video-R1-7B", 64, 1, (37.1, 52.4, 63.8, 64.8, 73.2, 61.4)),
    ("Video-R1-7B-wo-image", 16, 2, (32.3, 45.8, 60.6, 60.9, 69.8, 53.8)),
    ("Video-R1-7B-wo-temporal", 16, 2, (32.7, 48.3, 62.1, 61.1, 71.3, 54.5)),
    ("Video-R1-7B-zero", 16, 2, (31.8, 49.5, 63.8, 60.4, 70.9, 53.8)),
)


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
    from vr1_jax.tools.compare import compare, read_results

    found = compare(*(read_results(path) for path in paths))
    print(json.dumps(found, indent=1) if as_json else comparison_table(found, [str(path) for path in paths]))


def result_table(summary: Mapping[str, Any], final_acc: Mapping[str, float], frames: int) -> str:
    """What was reached, by group, beside what the paper reports."""
    broken, several = summary["broken"], "answers_each" in summary
    each = f" with {summary['answers_each']} answers each" if several else ""
    lines = [
        f"{summary['benchmark'] or 'unknown benchmark'}, at most {frames} frames, {summary['rules']} rules: "
        f"{summary['samples']} questions{each}, {broken} broken, {summary['cut_short']} answers cut short"
    ]
    names = {"all": "all questions" + (" (broken ones are wrong)" if broken else "")}
    if broken:
        names["answered"] = "answered questions"
    names["mean of tasks"] = "mean of tasks"
    rows = [(label, summary["score"][name]) for name, label in names.items() if name in summary["score"]]
    for name in ("pass@k", "maj@k") if several else ():
        rows += [(name.replace("k", k), mean) for k, mean in summary[name].items()]
    for grouping, groups in summary["by"].items():
        rows += [(f"{grouping.replace('_', ' ')}: {name}", mean) for name, mean in groups.items()]
    cells = [(name, str(mean["count"]), percent(mean["mean"]), show_interval(mean)) for name, mean in rows]
    lines += align([("", "questions", "percent", "95% interval"), *cells])
    kinds = {"mean_acc": "accuracy", "mean_mra": "mean relative accuracy"}
    lines.append("final_acc: " + ", ".join(f"{kinds[name]} {percent(x)}" for name, x in final_acc.items()))
    for sample in summary["broken_samples"][:SHOWN_BROKEN]:
        lines.append(f"  broken: {sample['error']}")
    if broken > SHOWN_BROKEN:
        lines.append(f"  and {broken - SHOWN_BROKEN} more in broken_samples")
    return "\n".join([*lines, *published_lines(summary["benchmark"] or "", frames)])


def comparison_table(found: Mapping[str, Any], names: Sequence[str]) -> str:
    difference, right = found["difference"], found["right"]
    lines = [f"A {names[0]}", f"B {names[1]}", f"{found['samples']} questions in both"]
    for side, count in found["only_in"].items():
        if count:
            lines.append(f"{count} questions only in {side.upper()}, left out")
    scores = " -> ".join(percent(found["score"][side]) for side in "ab")
    lines.append(
        f"score {scores}, difference {percent(difference['mean'], sign=True)} {show_interval(difference)}"
    )
    lines.append(
        f"right in both {right['both']}, only in A {right['only_a']}, only in B {right['only_b']}, "
        f"in neither {right['neither']} (signs flipped by video: p = {right['p']:.3g})"
    )
    counts = ("samples", "better_in_a", "better_in_b")
    header = ("cause", "questions", "better in A", "better in B", "share of the difference")
    rows = [
        (name, *(str(n[count]) for count in counts), percent(n["difference"], sign=True))
        for name, n in found["causes"].items()
        if n["samples"]
    ]
    lines += align([header, *rows])
    for name, (a, b) in found["settings"].items():
        same_start = shorten(a) == shorten(b)
        lines.append(f"{name}: {'differs far in' if same_start else f'{shorten(a)} in A, {shorten(b)} in B'}")
    return "\n".join(lines)


def percent(share: float | None, *, sign: bool = False) -> str:
    return "-" if share is None else f"{100 * share:{'+' if sign else ''}.1f}"


def published_lines(benchmark: str, frames: int) -> list[str]:
    """The paper's rows that have a figure for this benchmark; nothing for one that the paper does not use."""
    if benchmark not in BENCHMARKS:
        return []
    place = BENCHMARKS.index(benchmark)
    cells = [
        (("* " if count == frames else "  ") + model, str(count or "-"), f"{scores[place]:.1f}", f"Table {table}")
        for model, count, table, scores in ROWS
        if scores[place] is not None
    ]
    return [f"the paper ({SOURCE}) on {benchmark}, * at the same number of frames:", *align(cells)]


def show_interval(mean: Mapping[str, Any]) -> str:
    if mean["interval"] is None:
        return ""
    low, high = mean["interval"]
    return f"[{percent(low)}, {percent(high)}]"


def shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_SETTING else text[: SHOWN_SETTING - 3] + "..."


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join(["", name.ljust(first), *map(str.rjust, cells, others)]).rstrip() for name, *cells in rows]


def main(arguments: list[str] | None = None) -> int:
    goes_on = "the same command goes on where it was"
    return run_command("evaluate", work, Arguments, arguments, __doc__, interrupted=goes_on)


if __name__ == "__main__":
    sys.exit(main())
