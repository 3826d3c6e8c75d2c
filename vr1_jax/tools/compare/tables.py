"""Results and comparisons as text for a terminal; figures in percent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vr1_jax.tools.compare.comparison import CAUSES

# What the paper reports, to stand beside one's own figures: accuracy in percent, None where it gives none.
#
# Source: Video-R1 (arXiv 2503.21776, version 3), Tables 1 and 2; frames of 256 x 28 x 28 pixels, top-p 0.001 and
# temperature 0.01. MMVU is its multiple-choice part, VideoMME is without subtitles. The paper does not say how
# it averages a benchmark that mixes accuracy and mean relative accuracy (VSI-Bench).

SOURCE = "arXiv 2503.21776v3"
BENCHMARKS = ("VSI-Bench", "VideoMMMU", "MMVU", "MVBench", "TempCompass", "VideoMME")


@dataclass(frozen=True)
class Row:
    model: str
    frames: int | None  # None where the paper gives none
    table: int
    scores: tuple[float | None, ...]  # in the order of BENCHMARKS

    def score(self, benchmark: str) -> float | None:
        return self.scores[BENCHMARKS.index(benchmark)]


ROWS = (
    Row("GPT-4o", None, 1, (34.0, 61.2, 75.4, None, None, 71.9)),
    Row("Qwen2.5-VL-7B (CoT)", 16, 1, (27.7, 47.8, 59.2, 57.4, 72.2, 53.1)),
    Row("Qwen2.5-VL-7B-SFT", 16, 1, (31.8, 47.4, 61.3, 59.4, 69.2, 52.8)),
    Row("Video-R1-7B", 16, 1, (34.6, 49.8, 64.2, 62.7, 72.6, 57.4)),
    Row("Qwen2.5-VL-7B (CoT)", 32, 1, (30.1, 48.1, 60.0, 59.0, 72.6, 56.6)),
    Row("Qwen2.5-VL-7B-SFT", 32, 1, (33.3, 49.4, 63.5, 60.5, 69.9, 55.4)),
    Row("Video-R1-7B", 32, 1, (35.8, 52.3, 63.8, 63.9, 73.2, 59.3)),
    Row("Qwen2.5-VL-7B (CoT)", 64, 1, (31.4, 50.4, 60.0, 59.2, 72.9, 59.6)),
    Row("Qwen2.5-VL-7B-SFT", 64, 1, (34.8, 49.4, 61.6, 60.6, 70.0, 58.8)),
    Row("Video-R1-7B", 64, 1, (37.1, 52.4, 63.8, 64.8, 73.2, 61.4)),
    Row("Video-R1-7B-wo-image", 16, 2, (32.3, 45.8, 60.6, 60.9, 69.8, 53.8)),
    Row("Video-R1-7B-wo-temporal", 16, 2, (32.7, 48.3, 62.1, 61.1, 71.3, 54.5)),
    Row("Video-R1-7B-zero", 16, 2, (31.8, 49.5, 63.8, 60.4, 70.9, 53.8)),
)


def published_rows(benchmark: str) -> list[Row]:
    """The rows that have a figure for this benchmark; none for one that the paper does not use."""
    if benchmark not in BENCHMARKS:
        return []
    return [row for row in ROWS if row.score(benchmark) is not None]


SHOWN_BROKEN = 5
SHOWN_SETTING = 60


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
    cells = [(name, str(mean["count"]), percent(mean["mean"]), _interval(mean)) for name, mean in rows]
    lines += _align([("", "questions", "percent", "95% interval"), *cells])
    kinds = {"mean_acc": "accuracy", "mean_mra": "mean relative accuracy"}
    lines.append("final_acc: " + ", ".join(f"{kinds[name]} {percent(x)}" for name, x in final_acc.items()))
    for sample in summary["broken_samples"][:SHOWN_BROKEN]:
        lines.append(f"  broken: {sample['error']}")
    if broken > SHOWN_BROKEN:
        lines.append(f"  and {broken - SHOWN_BROKEN} more in broken_samples")
    return "\n".join([*lines, *_published(summary["benchmark"] or "", frames)])


def comparison_table(found: Mapping[str, Any], names: Sequence[str]) -> str:
    difference, right = found["difference"], found["right"]
    lines = [f"A {names[0]}", f"B {names[1]}", f"{found['samples']} questions in both"]
    for side, count in found["only_in"].items():
        if count:
            lines.append(f"{count} questions only in {side.upper()}, left out")
    scores = " -> ".join(percent(found["score"][side]) for side in "ab")
    lines.append(f"score {scores}, difference {percent(difference['mean'], sign=True)} {_interval(difference)}")
    lines.append(
        f"right in both {right['both']}, only in A {right['only_a']}, only in B {right['only_b']}, "
        f"in neither {right['neither']} (signs flipped by video: p = {right['p']:.3g})"
    )
    header = ("cause", "questions", "better in A", "better in B", "share of the difference")
    rows = [(name, *_cause(found["causes"][name])) for name in CAUSES if found["causes"][name]["samples"]]
    lines += _align([header, *rows])
    for name, (a, b) in found["settings"].items():
        same_start = _short(a) == _short(b)
        lines.append(f"{name}: {'differs far in' if same_start else f'{_short(a)} in A, {_short(b)} in B'}")
    return "\n".join(lines)


def percent(share: float | None, *, sign: bool = False) -> str:
    return "-" if share is None else f"{100 * share:{'+' if sign else ''}.1f}"


def _published(benchmark: str, frames: int) -> list[str]:
    rows = published_rows(benchmark)
    if not rows:
        return []
    cells = [
        (
            ("* " if row.frames == frames else "  ") + row.model,
            str(row.frames or "-"),
            f"{row.score(benchmark):.1f}",
            f"Table {row.table}",
        )
        for row in rows
    ]
    return [f"the paper ({SOURCE}) on {benchmark}, * at the same number of frames:", *_align(cells)]


def _interval(mean: Mapping[str, Any]) -> str:
    if mean["interval"] is None:
        return ""
    low, high = mean["interval"]
    return f"[{percent(low)}, {percent(high)}]"


def _cause(counts: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(counts["samples"]),
        str(counts["better_in_a"]),
        str(counts["better_in_b"]),
        percent(counts["difference"], sign=True),
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_SETTING else text[: SHOWN_SETTING - 3] + "..."


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join(["", name.ljust(first), *map(str.rjust, cells, others)]).rstrip() for name, *cells in rows]
