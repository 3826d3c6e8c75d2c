"""The four questions one opens a report with, answered from the numbers, with the noise they have."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vr1_jax.tools.report.run_files import Run

Columns = dict[str, list]
GOOD, WATCH, BAD, UNKNOWN = "good", "watch", "bad", "unknown"
BY_SIGN = {1: GOOD, 0: WATCH, -1: BAD}  # of a change: better, no clear change, worse
EDGE = 50  # most steps that count as the start or the end of a run
NOISE = 2.0  # standard errors below which a difference says nothing


@dataclass(frozen=True)
class Finding:
    verdict: str
    headline: str
    details: Sequence[str]
    metric: str | None  # drawn beside it


@dataclass(frozen=True)
class Mean:
    value: float
    error: float

    def __sub__(self, other: "Mean") -> "Mean":
        return Mean(self.value - other.value, math.hypot(self.error, other.error))

    @property
    def sign(self) -> int:
        """0 where noise could have made it."""
        return 0 if abs(self.value) <= NOISE * self.error else (1 if self.value > 0 else -1)

    def __str__(self) -> str:
        if self.error == 0:
            return f"{self.value:.3g}"
        digits = min(6, max(0, -math.floor(math.log10(self.error))))
        return f"{self.value:.{digits}f}\u00a0±\u00a0{self.error:.{digits}f}"


def find(run: Run, columns: Columns) -> list[dict[str, Any]]:
    questions = {
        "Is it learning?": _learning,
        "Does the order of frames matter?": _order,
        "Is it hacking the reward?": _hacking,
        "Is anything broken?": _broken,
    }
    return [{"question": question, **asdict(answer(run, columns))} for question, answer in questions.items()]


def _values(columns: Columns, name: str) -> list[float]:
    return [value for value in columns.get(name, []) if value is not None]


def _edges(columns: Columns, name: str) -> tuple[Mean, Mean] | None:
    """Start and end of a curve: its first and last tenth, at least 3 values of each; None if it is shorter."""
    values = _values(columns, name)
    if len(values) < 6:
        return None
    count = min(EDGE, max(3, len(values) // 10))
    parts = values[:count], values[-count:]
    first, last = (Mean(statistics.fmean(part), statistics.stdev(part) / count**0.5) for part in parts)
    return first, last


def _heldout(run: Run) -> tuple[Mean, Mean] | None:
    """The first and the last held-out accuracy; the first may be of the model that the run started from."""
    pairs = [
        (line.get("heldout_accuracy"), line.get("heldout_accuracy_error")) for line in (run.before, *run.metrics)
    ]
    points = [Mean(*pair) for pair in pairs if None not in pair]
    return (points[0], points[-1]) if len(points) > 1 else None


def _learning(run: Run, columns: Columns) -> Finding:
    details = []
    for name, label in (("accuracy", "Accuracy while training"), ("reward", "Reward"), ("loss", "Loss")):
        if (ends := _edges(columns, name)) and (name != "loss" or "reward" not in columns):
            details.append(f"{label}: {ends[0]} in the first steps, {ends[1]} in the last.")
    if held := _heldout(run):
        if run.before:
            details.insert(0, "The first number is of the model that it started from.")
        headline = f"Held-out accuracy {held[0]} → {held[1]}"
        return Finding(BY_SIGN[(held[1] - held[0]).sign], headline, details, "heldout_accuracy")
    name, better = ("accuracy", 1) if "accuracy" in columns else ("loss", -1)
    if (ends := _edges(columns, name)) is None:
        return Finding(UNKNOWN, "Too few steps to tell", details, name)
    headline = f"{name.capitalize()} {ends[0].value:.3g} → {ends[1].value:.3g}"
    details.append("Held-out accuracy is not measured twice.")
    return Finding(BY_SIGN[better * (ends[1] - ends[0]).sign], headline, details, name)


def _order(run: Run, columns: Columns) -> Finding:
    if "temporal_gap" not in columns:
        return Finding(UNKNOWN, "Not measured", ["No shuffled frames were asked about."], None)
    if (ends := _edges(columns, "temporal_gap")) is None:
        return Finding(UNKNOWN, "Too few steps to tell", [], "temporal_gap")
    first, last = ends
    details = [f"In the first steps the difference was {first}."]
    if signal := _edges(columns, "temporal_signal"):
        details.append(f"The temporal bonus changes advantages by {signal[1].value:.0%}.")
        if signal[1].value < 0.02:
            details[-1] += " Normalisation cancels nearly all of it; grpo.placement advantage would not."
    if blind := _values(columns, "heldout_accuracy_blind"):
        seeing = _values(columns, "heldout_accuracy")
        details.append(f"Held out, with every frame blanked: {blind[-1]:.2f}, seeing: {seeing[-1]:.2f}.")
    words = {1: "Ordered frames score better", 0: "No clear difference", -1: "Shuffled frames score better"}
    return Finding(BY_SIGN[last.sign], f"{words[last.sign]}: {last}", details, "temporal_gap")


def _hacking(run: Run, columns: Columns) -> Finding:
    if "reward" not in columns:
        return Finding(UNKNOWN, "Nothing is rewarded in this stage", [], None)
    signs = []
    names = ("reward", "accuracy", "length", "entropy", "cut_off", "distinct")
    reward, accuracy, length, entropy, cut_off, distinct = (_edges(columns, name) for name in names)
    if reward and accuracy and (gain := reward[1] - reward[0]).sign > 0:
        if (accuracy[1] - accuracy[0]).sign <= 0:
            signs.append(f"Reward rose by {gain} but accuracy did not: format and bonuses pay.")
        if (held := _heldout(run)) and (held[1] - held[0]).sign < 0:
            signs.append(f"Reward rose while held-out accuracy fell from {held[0]} to {held[1]}.")
    if length and length[0].value > 0 and not 0.5 <= length[1].value / length[0].value <= 1.5:
        signs.append(f"Answers went from {length[0].value:.0f} to {length[1].value:.0f} tokens.")
    if entropy and entropy[1].value < 0.3 * entropy[0].value:
        signs.append(f"Entropy fell from {entropy[0].value:.3g} to {entropy[1].value:.3g} nats a token.")
    if cut_off and cut_off[1].value > 0.1:
        signs.append(f"{cut_off[1].value:.0%} of the last answers reached the length limit without an end.")
    if distinct and distinct[1].value < 0.5:
        signs.append(f"Only {distinct[1].value:.0%} of a group's answers differ from each other.")
    if reward is None:
        return Finding(UNKNOWN, "Too few steps to tell", signs, "length")
    if not signs:
        calm = "Reward goes with accuracy; length, entropy and variety of answers are steady."
        return Finding(GOOD, "No sign of it", [calm], "length")
    return Finding(WATCH, _to_look_at(signs), signs, "length")


def _broken(run: Run, columns: Columns) -> Finding:
    faults, oddities, gaps = [], [], _values(columns, "sampler_gap_mean")
    if skipped := max(_values(columns, "skipped"), default=0):
        faults.append(f"{skipped:.0f} updates were skipped: their loss or gradient was not finite.")
    names = ("loss", "grad_norm", "kl", "reward")
    if missing := [name for name in names if any(line.get(name, 0) is None for line in run.metrics)]:
        faults.append(f"Not a number in some steps: {', '.join(missing)}.")
    alarm = run.setting("watch.gap_alarm", 0.5)
    if over := sum(gap > alarm for gap in gaps):
        faults.append(f"Sampler and trainer differ by more than {alarm:g} nats a token in {over} steps.")
    if (ends := _edges(columns, "no_signal")) and ends[1].value > 0.7:
        oddities.append(
            f"{ends[1].value:.0%} of the last groups teach nothing: all their answers earned the same."
        )
    norms = _values(columns, "grad_norm")
    if len(norms) > 5 and max(norms) > 20 * (usual := statistics.median(norms)) > 0:
        oddities.append(f"The gradient's norm jumped to {max(norms):.3g}; its median is {usual:.3g}.")
    if count := sum(run.refused.values()):
        reasons = ", ".join(f"{reason} {number}" for reason, number in run.refused.most_common(4))
        oddities.append(f"{count} records were refused: {reasons}.")
    steps = [line["step"] for line in run.metrics]
    if jumps := sum(b != a + 1 for a, b in itertools.pairwise(steps)):
        oddities.append(f"Steps are missing or doubled in metrics.jsonl at {jumps} place{'s' * (jumps > 1)}.")
    planned = run.setting("steps", 0)
    if isinstance(planned, int) and steps[-1] + 1 < planned:
        oddities.append(f"The run stands at step {steps[-1] + 1} of {planned}.")
    drawn = "sampler_gap_mean" if "sampler_gap_mean" in columns else "grad_norm"
    if found := faults + oddities:
        return Finding(BAD if faults else WATCH, _to_look_at(found), found, drawn)
    calm = ["Every update was finite."]
    if gaps:
        calm.append(f"Sampler and trainer differ by {statistics.median(gaps):.2g} nats a token.")
    return Finding(GOOD, "Nothing seen", calm, drawn)


def _to_look_at(things: Sequence[str]) -> str:
    return f"{len(things)} thing{'s' * (len(things) > 1)} to look at"
