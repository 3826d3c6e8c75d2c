"""Two results on the same questions: how far apart, how sure, and through what.

Each pair of answers is put down to the first of these causes that holds:

    broken in one   one of them could not be asked the question
    frames          other frames, or the same at another size
    prompt          other words around the question
    extraction      the same output, read or scored otherwise
    output          the same question put the same way, answered otherwise
    none            the same output with the same score

Results without a passport (upstream's own files) cannot tell frames and prompts apart: such pairs count as
extraction, output or none.
"""

import collections
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.config_files import flat
from vr1_jax.errors import UserError
from vr1_jax.evaluation.results import SEED, answers_of, cluster_means, clusters_of, error_of, sign_flip_p

CAUSES = ("broken in one", "frames", "prompt", "extraction", "output", "none")
KEY = ("problem", "path", "options", "solution", "problem_type")
SEEN = ("frames", "timestamps", "size", "grid")
SHOWN_BROKEN = 5
SHOWN_SETTING = 60
Result = Mapping[str, Any]


def read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, list) or not results:
        raise UserError(f"{path}: has no list of results; --compare takes two outputs of this command")
    for number, result in enumerate(results):
        if not isinstance(result, dict) or not isinstance(result.get("reward"), int | float):
            raise UserError(f"{path}: result {number} has no reward")
    return content


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """B against A, as plain JSON. Questions that only one of them has are counted and left out."""
    pairs, only_a, only_b = _match(a["results"], b["results"])
    if not pairs:
        raise UserError("the two files have no question in common")
    rewards = np.array([[first["reward"], second["reward"]] for first, second in pairs], np.float64)
    difference = rewards[:, 1] - rewards[:, 0]
    causes = np.array([cause(first, second) for first, second in pairs])
    clusters = clusters_of([pair[0] for pair in pairs])
    mean = cluster_means(difference, clusters, {"all": np.ones(len(pairs), bool)}, seed=SEED, shares=False)
    passports = [flat(result.get("passport") or {}) for result in (a, b)]
    settings = {
        name: [passport.get(name) for passport in passports] for name in sorted({*passports[0], *passports[1]})
    }
    return {
        "samples": len(pairs),
        "only_in": {"a": only_a, "b": only_b},
        "score": {"a": float(rewards[:, 0].mean()), "b": float(rewards[:, 1].mean())},
        "difference": mean["all"].to_json(),
        "right": _table(rewards == 1.0, clusters),
        "causes": {
            name: {
                "samples": int((causes == name).sum()),
                "better_in_a": int((difference[causes == name] < 0).sum()),
                "better_in_b": int((difference[causes == name] > 0).sum()),
                "difference": float(difference[causes == name].sum() / len(pairs)),
            }
            for name in CAUSES
        },
        "settings": {name: values for name, values in settings.items() if values[0] != values[1]},
    }


def cause(a: Result, b: Result) -> str:
    """Why these two answers to one question may differ."""
    if (error_of(a) is None) != (error_of(b) is None):
        return "broken in one"
    shown = [result.get("passport") for result in (a, b)]
    if all(shown):
        if any(shown[0].get(name) != shown[1].get(name) for name in SEEN):
            return "frames"
        if shown[0].get("prompt") != shown[1].get("prompt"):
            return "prompt"
    first, second = ([answer.get("output") for answer in answers_of(result)] for result in (a, b))
    if first != second:
        return "output"
    same = all(a.get(name) == b.get(name) for name in ("prediction", "reward"))
    return "none" if same else "extraction"


def _match(a: Sequence[Result], b: Sequence[Result]) -> tuple[list[tuple[Result, Result]], int, int]:
    """Pairs of the same question, in the order of A; a question asked n times is matched n times."""
    waiting = collections.defaultdict(collections.deque)
    for result in b:
        waiting[_key(result)].append(result)
    pairs = [(result, waiting[key].popleft()) for result in a if waiting.get(key := _key(result))]
    return pairs, len(a) - len(pairs), len(b) - len(pairs)


def _key(result: Result) -> str:
    # Copies of a benchmark differ in what they put before a path.
    parts = {name: result.get(name) for name in KEY} | {"path": str(result.get("path")).rpartition("/")[2]}
    return json.dumps(parts, sort_keys=True)


def _table(right: np.ndarray, clusters: Sequence[Hashable]) -> dict[str, Any]:
    both, only_a, only_b = ((right == pattern).all(1).sum() for pattern in ((1, 1), (1, 0), (0, 1)))
    return {
        "both": int(both),
        "only_a": int(only_a),
        "only_b": int(only_b),
        "neither": int(len(right) - both - only_a - only_b),
        "p": sign_flip_p(right[:, 1].astype(float) - right[:, 0], clusters, seed=SEED),
    }


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
    return "\n".join([*lines, *published_lines(summary["benchmark"] or "", frames)])


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
    counts = ("samples", "better_in_a", "better_in_b")
    header = ("cause", "questions", "better in A", "better in B", "share of the difference")
    rows = [
        (name, *(str(n[count]) for count in counts), percent(n["difference"], sign=True))
        for name, n in found["causes"].items()
        if n["samples"]
    ]
    lines += _align([header, *rows])
    for name, (a, b) in found["settings"].items():
        same_start = _short(a) == _short(b)
        lines.append(f"{name}: {'differs far in' if same_start else f'{_short(a)} in A, {_short(b)} in B'}")
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
    return [f"the paper ({SOURCE}) on {benchmark}, * at the same number of frames:", *_align(cells)]


def _interval(mean: Mapping[str, Any]) -> str:
    if mean["interval"] is None:
        return ""
    low, high = mean["interval"]
    return f"[{percent(low)}, {percent(high)}]"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_SETTING else text[: SHOWN_SETTING - 3] + "..."


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join(["", name.ljust(first), *map(str.rjust, cells, others)]).rstrip() for name, *cells in rows]
