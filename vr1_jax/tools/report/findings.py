"""The four questions one opens a report with, answered from the numbers, with the noise they have."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
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
    details: tuple[str, ...]
    metric: str | None  # drawn beside it


@dataclass(frozen=True)
class Mean:
    value: float
    error: float

    def __sub__(self, other: "Mean") -> "Mean":
        return Mean(self.value - other.value, (self.error**2 + other.error**2) ** 0.5)

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
    return [{"question": question, **asdict(answer(run, columns))} for question, answer in _QUESTIONS.items()]


def edges(columns: Columns, name: str) -> tuple[Mean, Mean] | None:
    """Start and end of a curve: its first and last tenth, at least 3 values of each; None if it is shorter."""
    values = [value for value in columns.get(name, []) if value is not None]
    if len(values) < 6:
        return None
    count = min(EDGE, max(3, len(values) // 10))
    return _mean(values[:count]), _mean(values[-count:])


def _mean(values: list[float]) -> Mean:
    return Mean(statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5)


def _learning(run: Run, columns: Columns) -> Finding:
    details = []
    for name, label in (("accuracy", "Accuracy while training"), ("reward", "Reward"), ("loss", "Loss")):
        if (ends := edges(columns, name)) and (name != "loss" or "reward" not in columns):
            details.append(f"{label}: {ends[0]} in the first steps, {ends[1]} in the last.")
    if held := heldout(run, columns):
        change = held[1] - held[0]
        headline = f"Held-out accuracy {held[0]} → {held[1]}"
        if run.before:
            details.insert(0, "The first number is of the model that it started from.")
        return Finding(BY_SIGN[change.sign], headline, tuple(details), "heldout_accuracy")
    name, better = ("accuracy", 1) if "accuracy" in columns else ("loss", -1)
    if (ends := edges(columns, name)) is None:
        return Finding(UNKNOWN, "Too few steps to tell", tuple(details), name)
    sign = better * (ends[1] - ends[0]).sign
    headline = f"{name.capitalize()} {ends[0].value:.3g} → {ends[1].value:.3g}"
    return Finding(BY_SIGN[sign], headline, (*details, "Held-out accuracy is not measured twice."), name)


def heldout(run: Run, columns: Columns) -> tuple[Mean, Mean] | None:
    """The first and the last held-out accuracy; the first may be of the model that the run started from."""
    lines = [run.before, *run.metrics]
    pairs = [(line.get("heldout_accuracy"), line.get("heldout_accuracy_error")) for line in lines]
    points = [Mean(value, error) for value, error in pairs if value is not None and error is not None]
    return (points[0], points[-1]) if len(points) > 1 else None


def _order(run: Run, columns: Columns) -> Finding:
    if "temporal_gap" not in columns:
        return Finding(UNKNOWN, "Not measured", ("No shuffled frames were asked about.",), None)
    ends = edges(columns, "temporal_gap")
    if ends is None:
        return Finding(UNKNOWN, "Too few steps to tell", (), "temporal_gap")
    first, last = ends
    details = [f"In the first steps the difference was {first}."]
    if signal := edges(columns, "temporal_signal"):
        text = f"The temporal bonus changes advantages by {signal[1].value:.0%}."
        if signal[1].value < 0.02:
            text += " Normalisation cancels nearly all of it; grpo.placement advantage would not."
        details.append(text)
    if blind := _present(columns, "heldout_accuracy_blind"):
        seeing = _present(columns, "heldout_accuracy")
        details.append(f"Held out, with every frame blanked: {blind[-1]:.2f}, seeing: {seeing[-1]:.2f}.")
    words = {1: "Ordered frames score better", 0: "No clear difference", -1: "Shuffled frames score better"}
    return Finding(BY_SIGN[last.sign], f"{words[last.sign]}: {last}", tuple(details), "temporal_gap")


def _hacking(run: Run, columns: Columns) -> Finding:
    if "reward" not in columns:
        return Finding(UNKNOWN, "Nothing is rewarded in this stage", (), None)
    signs = list(_signs_of_hacking(run, columns))
    if edges(columns, "reward") is None:
        return Finding(UNKNOWN, "Too few steps to tell", tuple(signs), "length")
    if not signs:
        calm = "Reward goes with accuracy; length, entropy and variety of answers are steady."
        return Finding(GOOD, "No sign of it", (calm,), "length")
    return Finding(WATCH, _to_look_at(signs), tuple(signs), "length")


def _signs_of_hacking(run: Run, columns: Columns) -> Iterator[str]:
    ends = {
        name: edges(columns, name) for name in ("reward", "accuracy", "length", "entropy", "cut_off", "distinct")
    }
    if ends["reward"] and ends["accuracy"] and (ends["reward"][1] - ends["reward"][0]).sign > 0:
        if (ends["accuracy"][1] - ends["accuracy"][0]).sign <= 0:
            gain = ends["reward"][1] - ends["reward"][0]
            yield f"Reward rose by {gain} but accuracy did not: format and bonuses pay."
        if (held := heldout(run, columns)) and (held[1] - held[0]).sign < 0:
            yield f"Reward rose while held-out accuracy fell from {held[0]} to {held[1]}."
    if ends["length"]:
        first, last = ends["length"]
        if first.value > 0 and not 0.5 <= last.value / first.value <= 1.5:
            yield f"Answers went from {first.value:.0f} to {last.value:.0f} tokens."
    if ends["entropy"] and ends["entropy"][1].value < 0.3 * ends["entropy"][0].value:
        yield f"Entropy fell from {ends['entropy'][0].value:.3g} to {ends['entropy'][1].value:.3g} nats a token."
    if ends["cut_off"] and ends["cut_off"][1].value > 0.1:
        yield f"{ends['cut_off'][1].value:.0%} of the last answers reached the length limit without an end."
    if ends["distinct"] and ends["distinct"][1].value < 0.5:
        yield f"Only {ends['distinct'][1].value:.0%} of a group's answers differ from each other."


def _broken(run: Run, columns: Columns) -> Finding:
    drawn = "sampler_gap_mean" if "sampler_gap_mean" in columns else "grad_norm"
    bad, watch = list(_faults(run, columns)), list(_oddities(run, columns))
    if found := (*bad, *watch):
        return Finding(BAD if bad else WATCH, _to_look_at(found), found, drawn)
    calm = ["Every update was finite."]
    if gaps := _present(columns, "sampler_gap_mean"):
        calm.append(f"Sampler and trainer differ by {statistics.median(gaps):.2g} nats a token.")
    return Finding(GOOD, "Nothing seen", tuple(calm), drawn)


def _to_look_at(things: Sequence[str]) -> str:
    return f"{len(things)} thing{'s' * (len(things) > 1)} to look at"


def _present(columns: Columns, name: str) -> list[float]:
    return [value for value in columns.get(name, []) if value is not None]


def _faults(run: Run, columns: Columns) -> Iterator[str]:
    if skipped := max(_present(columns, "skipped"), default=0):
        yield f"{skipped:.0f} updates were skipped: their loss or gradient was not finite."
    missing = [
        name
        for name in ("loss", "grad_norm", "kl", "reward")
        if any(line.get(name, 0) is None for line in run.metrics)
    ]
    if missing:
        yield f"Not a number in some steps: {', '.join(missing)}."
    alarm = run.setting("watch.gap_alarm", 0.5)
    if over := [gap for gap in _present(columns, "sampler_gap_mean") if gap > alarm]:
        yield f"Sampler and trainer differ by more than {alarm:g} nats a token in {len(over)} steps."


def _oddities(run: Run, columns: Columns) -> Iterator[str]:
    if (ends := edges(columns, "no_signal")) and ends[1].value > 0.7:
        yield f"{ends[1].value:.0%} of the last groups teach nothing: all their answers earned the same."
    norms = _present(columns, "grad_norm")
    if len(norms) > 5 and max(norms) > 20 * statistics.median(norms) > 0:
        yield f"The gradient's norm jumped to {max(norms):.3g}; its median is {statistics.median(norms):.3g}."
    if count := sum(run.refused.values()):
        reasons = ", ".join(f"{reason} {number}" for reason, number in run.refused.most_common(4))
        yield f"{count} records were refused: {reasons}."
    steps = [line["step"] for line in run.metrics]
    if gaps := sum(1 for a, b in itertools.pairwise(steps) if b != a + 1):
        yield f"Steps are missing or doubled in metrics.jsonl at {gaps} place{'s' * (gaps > 1)}."
    planned = run.setting("steps", 0)
    if isinstance(planned, int) and steps[-1] + 1 < planned:
        yield f"The run stands at step {steps[-1] + 1} of {planned}."


_QUESTIONS = {
    "Is it learning?": _learning,
    "Does the order of frames matter?": _order,
    "Is it hacking the reward?": _hacking,
    "Is anything broken?": _broken,
}
