"""Which sampled rationales become training data, and why the others do not."""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vr1_jax.data.records import Sample
from vr1_jax.errors import UsageError
from vr1_jax.rewards import accuracy_reward
from vr1_jax.tools.annotate.rationale import (
    MalformedAnswer,
    Rationale,
    contradiction,
    repeated_share,
    split_answer,
    units,
)

# In the order of the rules: the first that an answer breaks is the reason why it is dropped.
REASONS = ("unfinished", "format", "reward", "length", "loop", "contradiction", "duplicate", "surplus")
SHINGLE = 3  # words


@dataclass(frozen=True)
class KeepRules:
    """What a rationale must be to be kept. `None` turns a rule off."""

    min_reward: float = 0.6  # accuracy of the answer, without format and bonuses
    reward_rules: Literal["fixed", "upstream"] = "fixed"
    min_tokens: int = 20  # of the thought
    max_tokens: int = 960  # with tags and answer this fits data.answer_tokens of SFT
    loop_words: int = 5  # a run of so many words counts as repeated when it has stood in the text before
    max_repeated: float | None = 0.2  # share of repeated runs
    check_conclusion: bool = True  # drop thoughts that end on another answer than the one given
    max_similarity: float | None = 0.9  # shared three-word runs of two thoughts about the same question
    max_per_record: int = 1

    def __post_init__(self):
        for name in ("min_reward", "max_repeated", "max_similarity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must lie in 0..1")
        if self.reward_rules not in ("fixed", "upstream"):
            raise UsageError(f"reward_rules is {self.reward_rules!r}; use one of: fixed, upstream")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UsageError(f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}; 0 <= min <= max")
        for name in ("loop_words", "max_per_record"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Draft:
    """One sampled answer."""

    text: str
    tokens: int
    thought_tokens: int  # 0 where the answer has no such part
    stopped: bool  # by a stop token, not by the length limit


@dataclass(frozen=True)
class Verdict:
    """What became of a draft: kept with its rationale, or dropped for a reason."""

    reward: float
    rationale: Rationale | None = None
    reason: str | None = None
    detail: str = ""


class Keeper:
    """Judges the drafts of one record after another; what was kept before counts as known."""

    def __init__(self, rules: KeepRules):
        self.rules = rules
        self._known = NearDuplicates(rules.max_similarity) if rules.max_similarity is not None else None

    def judge(self, sample: Sample, drafts: Sequence[Draft]) -> list[Verdict]:
        """One verdict for each draft. The best rewarded come first; where rewards are equal, the order counts."""
        verdicts = [judge_alone(draft, sample, self.rules) for draft in drafts]
        kept = 0
        for n in sorted(range(len(drafts)), key=lambda n: -verdicts[n].reward):
            if verdicts[n].reason is None:
                verdicts[n] = self._among_others(verdicts[n], sample, n, kept)
                kept += verdicts[n].reason is None
        return verdicts

    def _among_others(self, verdict: Verdict, sample: Sample, number: int, kept: int) -> Verdict:
        if kept == self.rules.max_per_record:
            return _dropped(verdict, "surplus", f"the record has {kept} already")
        if self._known is not None:
            name = f"answer {number} to record {sample.index}"
            twin = self._known.find_or_add(sample.problem, verdict.rationale.thought, name)
            if twin is not None:
                return _dropped(verdict, "duplicate", f"says the same as {twin}")
        return verdict


def judge_alone(draft: Draft, sample: Sample, rules: KeepRules) -> Verdict:
    """By the rules that look at nothing but the draft and its record."""
    reward = accuracy_reward(draft.text, sample.solution, sample.problem_type, rules=rules.reward_rules)
    if not draft.stopped:
        return Verdict(reward, None, "unfinished", f"no end after {draft.tokens} tokens")
    try:
        rationale = split_answer(draft.text)
    except MalformedAnswer as error:
        return Verdict(reward, None, "format", str(error))
    verdict = Verdict(reward, rationale)
    if reward < rules.min_reward:
        return _dropped(verdict, "reward", f"{reward:.3g} is below {rules.min_reward:g}")
    if not rules.min_tokens <= draft.thought_tokens <= rules.max_tokens:
        limits = f"{rules.min_tokens} to {rules.max_tokens}"
        return _dropped(verdict, "length", f"a thought of {draft.thought_tokens} tokens, not {limits}")
    if rules.max_repeated is not None:
        repeated = repeated_share(rationale.thought, rules.loop_words)
        if repeated > rules.max_repeated:
            return _dropped(
                verdict, "loop", f"{repeated:.0%} of its runs of {rules.loop_words} words are repeated"
            )
    if rules.check_conclusion:
        pair = contradiction(rationale, sample.problem_type, sample.options)
        if pair is not None:
            return _dropped(verdict, "contradiction", f"the thought concludes {pair[0]}, the answer is {pair[1]}")
    return verdict


def _dropped(verdict: Verdict, reason: str, detail: str) -> Verdict:
    return Verdict(verdict.reward, verdict.rationale, reason, detail)


class NearDuplicates:
    """Thoughts about the same question that share their three-word runs (Jaccard index >= `threshold`).

    Two such sets have a member in common among the first of each in any fixed order, "first" being all but
    `threshold` of it; so only those are looked up.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._known: dict[tuple[str, ...], list[tuple[str, frozenset[int]]]] = defaultdict(list)
        self._places: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)

    def find_or_add(self, question: str, thought: str, name: str) -> str | None:
        """The name of a known one that says the same; without any, this one is known from now on."""
        key, runs = tuple(_words(question)), _shingles(thought)
        known = self._known[key]
        first = sorted(runs)[: len(runs) - math.ceil(self.threshold * len(runs)) + 1]
        for place in sorted({place for run in first for place in self._places.get((key, run), ())}):
            twin, theirs = known[place]
            if len(runs & theirs) >= self.threshold * len(runs | theirs):
                return twin
        for run in first:
            self._places[key, run].append(len(known))
        known.append((name, runs))
        return None


def _words(text: str) -> list[str]:
    return [unit for unit in units(text) if unit.isalnum()]


def _shingles(text: str) -> frozenset[int]:
    words = _words(text)
    runs = range(max(1, len(words) - SHINGLE + 1))
    return frozenset(zlib.crc32(" ".join(words[start : start + SHINGLE]).encode()) for start in runs)


# What was kept and what was not, counted by reason, with examples to look at.

EXAMPLES = 3  # of each reason
KEPT = "kept"


class Tally:
    """Counts records and their answers as they are judged."""

    def __init__(self):
        self.refused: list[dict[str, Any]] = []
        self._outcomes: Counter[str] = Counter()  # of answers
        self._kept_of: Counter[int] = Counter()  # records, by how many of their answers were kept
        self._types: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._reward = 0.0

    def refuse(self, number: int, reason: str, error: str) -> None:
        """A record that could not be asked."""
        self.refused.append({"record": number, "reason": reason, "error": error})

    def add(self, sample: Sample, drafts: Sequence[Draft], verdicts: Sequence[Verdict]) -> None:
        outcomes = [verdict.reason or KEPT for verdict in verdicts]
        self._outcomes.update(outcomes)
        self._kept_of[outcomes.count(KEPT)] += 1
        self._types[sample.problem_type].update(
            records=1, annotated=KEPT in outcomes, answers=len(outcomes), kept=outcomes.count(KEPT)
        )
        self._reward += sum(verdict.reward for verdict in verdicts)
        for number, (outcome, draft, verdict) in enumerate(zip(outcomes, drafts, verdicts, strict=True)):
            if len(self._examples[outcome]) < EXAMPLES:
                place = {"record": sample.index, "answer": number, "reward": verdict.reward}
                known = {"problem": sample.problem, "solution": sample.solution}
                self._examples[outcome].append(place | known | {"why": verdict.detail, "text": draft.text})

    @property
    def kept(self) -> int:
        return self._outcomes[KEPT]

    @property
    def dropped(self) -> dict[str, int]:
        """By reason, in the order of the rules."""
        return {reason: self._outcomes[reason] for reason in REASONS if self._outcomes[reason]}

    @property
    def why(self) -> str:
        counts = self.dropped | Counter(f"record refused: {refusal['reason']}" for refusal in self.refused)
        return ", ".join(f"{reason} {count}" for reason, count in counts.items())

    def to_json(self) -> dict[str, Any]:
        answers, asked = self._outcomes.total(), self._kept_of.total()
        return {
            "records": {
                "all": asked + len(self.refused),
                "refused": len(self.refused),
                "annotated": asked - self._kept_of[0],
                "by_answers_kept": {str(count): self._kept_of[count] for count in sorted(self._kept_of)},
            },
            "answers": {
                "sampled": answers,
                "mean_reward": self._reward / answers if answers else None,
                "kept": self.kept,
                "dropped": self.dropped,
            },
            "by_problem_type": {name: dict(counts) for name, counts in sorted(self._types.items())},
            "refused": {
                "by_reason": dict(Counter(refusal["reason"] for refusal in self.refused)),
                "records": self.refused,
            },
            "examples": {name: self._examples[name] for name in (KEPT, *REASONS) if name in self._examples},
        }

    def table(self) -> str:
        """For people."""
        counts = self.to_json()
        records, answers = counts["records"], counts["answers"]
        lines = [
            f"records   {records['all']:8}   {records['annotated']} annotated, {records['refused']} refused",
            f"answers   {answers['sampled']:8}   {self.kept} kept",
        ]
        lines += [f"  {reason:13} {count:8}   dropped" for reason, count in self.dropped.items()]
        refused = counts["refused"]["by_reason"]
        lines += [f"  {reason:13} {count:8}   records refused" for reason, count in refused.items()]
        return "\n".join(lines)
