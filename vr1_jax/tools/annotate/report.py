"""What was kept and what was not, counted by reason, with examples to look at."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from vr1_jax.data.records import Sample
from vr1_jax.tools.annotate.rules import REASONS, Draft, Verdict

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
