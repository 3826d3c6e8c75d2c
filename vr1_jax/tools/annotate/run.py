"""Records to a chain-of-thought set: `scripts/annotate.py` without the command line.

Sampling is expensive and keeping is not, so they are apart: answers are collected in a journal beside the output,
which stays. The same command goes on after a kill, and other rules judge the same answers anew.
"""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vr1_jax.config_files import flat, to_json
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError, Sample
from vr1_jax.data.tokenizer import ChatTokenizer
from vr1_jax.errors import UserError
from vr1_jax.evaluation.answering import Asking, Questions, answer_questions
from vr1_jax.evaluation.chat import Answer, load_chat_model
from vr1_jax.evaluation.journal import Journal
from vr1_jax.evaluation.run import assets_hash, file_hash, weights_hash
from vr1_jax.files import check_output_file, whole_file
from vr1_jax.progress import Progress
from vr1_jax.sharding import make_mesh
from vr1_jax.tools.annotate.config import AnnotateConfig
from vr1_jax.tools.annotate.rules import REASONS, Draft, Keeper, MalformedAnswer, Verdict, split_answer
from vr1_jax.weights.loading import open_source

CHUNK = 64  # records read before they are sorted into batches
EXAMPLES = 3  # of each reason
DRAFTS, KEPT = "drafts", "kept"


def path_beside(out: Path, what: Literal["samples.jsonl", "report.json", "rated.jsonl"]) -> Path:
    return out.with_name(f"{out.name}.{what}")


class Tally:
    """Counts records and their answers as they are judged, by reason, with examples to look at."""

    def __init__(self):
        self.refused: list[dict[str, Any]] = []  # records that could not be asked
        self._outcomes: Counter[str] = Counter()  # of answers
        self._kept_of: Counter[int] = Counter()  # records, by how many of their answers were kept
        self._types: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._reward = 0.0

    def add(self, sample: Sample, drafts: Sequence[Draft], verdicts: Sequence[Verdict]) -> None:
        outcomes = [verdict.reason or KEPT for verdict in verdicts]
        kept = outcomes.count(KEPT)
        self._outcomes.update(outcomes)
        self._kept_of[kept] += 1
        self._types[sample.problem_type].update(records=1, annotated=kept > 0, answers=len(outcomes), kept=kept)
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
    def refusals(self) -> Counter[str]:
        return Counter(refusal["reason"] for refusal in self.refused)

    @property
    def why(self) -> str:
        counts = self.dropped | {f"record refused: {reason}": count for reason, count in self.refusals.items()}
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
            "refused": {"by_reason": dict(self.refusals), "records": self.refused},
            "examples": {name: self._examples[name] for name in (KEPT, *REASONS) if name in self._examples},
        }

    def table(self) -> str:
        """For people."""
        asked, annotated = self._kept_of.total(), self._kept_of.total() - self._kept_of[0]
        rows = [("records", asked + len(self.refused), f"{annotated} annotated, {len(self.refused)} refused")]
        rows.append(("answers", self._outcomes.total(), f"{self.kept} kept"))
        rows += [(f"  {reason}", count, "dropped") for reason, count in self.dropped.items()]
        rows += [(f"  {reason}", count, "records refused") for reason, count in self.refusals.items()]
        return "\n".join(f"{name:<15} {count:8}   {what}" for name, count, what in rows)


def annotate(config: AnnotateConfig) -> Tally:
    """Writes the rated records and the report, and the output unless nothing is kept."""
    check_output_file(config.out, force=config.force, inputs=(config.records,))
    records = RecordFile(config.records)
    if not len(records):
        raise RecordError("holds no records", file=str(config.records))
    open_source(config.model)  # refuses what is no model before all of it is hashed
    with Journal(path_beside(config.out, "samples.jsonl"), fingerprint(config)) as journal:
        sample_answers(config, records, journal)
        return write_kept(config, records, journal)


def fingerprint(config: AnnotateConfig) -> dict[str, Any]:
    """All that the answers depend on; the rules of keeping are not among it."""
    settings = {
        "weights": weights_hash(config.model),
        "config and tokenizer": assets_hash(config.model),
        "records": file_hash(config.records),
        "prompt": config.prompt,
        "samples": config.samples,
        "positions": config.positions,
        "spacing": config.spacing,
        "seed": config.seed,
        "dtype": config.dtype,
    }
    parts = ("sampling", "frames", "images")
    return settings | flat({name: dataclasses.asdict(getattr(config, name)) for name in parts})


def sample_answers(config: AnnotateConfig, records: RecordFile, journal: Journal) -> None:
    """Fills the journal. A model is loaded only where something is missing."""
    if all(number in journal for number in range(len(records))):
        return
    mesh = make_mesh(data=-1, fsdp=1, tensor=config.tensor)
    chat = load_chat_model(config.model, dtype=config.dtype, presentation=config.asked, mesh=mesh)
    questions = Questions(records, config.media_root, chat)

    def keep(answers: Sequence[Answer]) -> dict[str, Any]:
        return {DRAFTS: [dataclasses.asdict(draft_of(answer, chat.tokenizer)) for answer in answers]}

    batcher = chat.batcher(config.rows)
    asking = Asking(config.sampling, config.seed, batcher, CHUNK, config.workers, config.samples, keep)
    with Progress("annotated", len(records)) as progress:
        answer_questions(questions, range(len(records)), asking, journal, progress)


def draft_of(answer: Answer, tokenizer: ChatTokenizer) -> Draft:
    try:
        thought = split_answer(answer.text).thought
    except MalformedAnswer:
        thought = ""
    # A model whose numbers overflow draws anything; such an answer has not come to an end.
    sound = bool(np.isfinite(answer.logprobs).all())
    return Draft(answer.text, len(answer.token_ids), len(tokenizer.encode_text(thought)), sound and answer.stopped)


def write_kept(config: AnnotateConfig, records: RecordFile, journal: Journal) -> Tally:
    """Judges all answers in the order of the records."""
    tally, keeper, report = Tally(), Keeper(config.keep), path_beside(config.out, "report.json")
    with whole_file(config.out) as file:
        opening = "[\n"
        with whole_file(path_beside(config.out, "rated.jsonl")) as rated:
            for number in range(len(records)):
                result = journal[number]
                if result["error"] is not None:
                    refusal = {"record": number, "reason": result["reason"], "error": result["error"]}
                    tally.refused.append(refusal)
                    continue
                sample, drafts = records[number], [Draft(**draft) for draft in result[DRAFTS]]
                verdicts = keeper.judge(sample, drafts)
                tally.add(sample, drafts, verdicts)
                rate = float(np.mean([verdict.reward >= config.keep.min_reward for verdict in verdicts]))
                record = records.raw(number) | {"pass_rate": rate}
                rated.write(json.dumps(record) + "\n")
                for process in (verdict.rationale.process for verdict in verdicts if verdict.reason is None):
                    file.write(opening + json.dumps(record | {"process": process}, ensure_ascii=False))
                    opening = ",\n"
        file.write("\n]\n")
        with whole_file(report) as other:
            json.dump({"settings": to_json(config)} | tally.to_json(), other, indent=1, ensure_ascii=False)
            other.write("\n")
        if not tally.kept:
            raise UserError(f"{config.out}: not written, for nothing was kept ({tally.why}); see {report}")
    return tally
