"""Records to a chain-of-thought set: `scripts/annotate.py` without the command line.

Sampling is expensive and keeping is not, so they are apart: answers are collected in a journal beside the output,
which stays. The same command goes on after a kill, and other rules judge the same answers anew.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.config_files import to_json
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError
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
from vr1_jax.tools.annotate.rationale import MalformedAnswer, split_answer
from vr1_jax.tools.annotate.rules import Draft, Keeper, KeepRules, Tally, Verdict
from vr1_jax.weights.loading import open_source

CHUNK = 64  # records read before they are sorted into batches
DRAFTS = "drafts"


def journal_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.samples.jsonl")


def report_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.report.json")


def rated_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.rated.jsonl")


def annotate(config: AnnotateConfig) -> Tally:
    """Writes the rated records and the report, and the output unless nothing is kept."""
    check_output_file(config.out, force=config.force, inputs=(config.records,))
    records = RecordFile(config.records)
    if not len(records):
        raise RecordError("holds no records", file=str(config.records))
    open_source(config.model)  # refuses what is no model before all of it is hashed
    with Journal(journal_path(config.out), fingerprint(config)) as journal:
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
    for name in ("sampling", "frames", "images"):
        settings |= {f"{name}.{key}": value for key, value in dataclasses.asdict(getattr(config, name)).items()}
    return settings


def sample_answers(config: AnnotateConfig, records: RecordFile, journal: Journal) -> None:
    """Fills the journal. A model is loaded only where something is missing."""
    if all(number in journal for number in range(len(records))):
        return
    mesh = make_mesh(data=-1, fsdp=1, tensor=config.tensor)
    chat = load_chat_model(config.model, dtype=config.dtype, presentation=config.asked, mesh=mesh)
    questions = Questions(records, config.media_root, chat)

    def keep(answers: Sequence[Answer]) -> dict[str, Any]:
        return {DRAFTS: [dataclasses.asdict(draft_of(answer, chat.tokenizer)) for answer in answers]}

    asking = Asking(
        config.sampling, config.seed, chat.batcher(config.rows), CHUNK, config.workers, config.samples, keep
    )
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
    tally, report = Tally(), report_path(config.out)
    with whole_file(config.out) as file:
        opening = "[\n"
        with whole_file(rated_path(config.out)) as rated:
            for number, verdicts in judged(records, journal, config.keep, tally):
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


def judged(
    records: RecordFile, journal: Journal, rules: KeepRules, tally: Tally
) -> Iterator[tuple[int, list[Verdict]]]:
    """Numbers of the records that could be asked, with what became of their answers; `tally` counts everything."""
    keeper = Keeper(rules)
    for number in range(len(records)):
        result = journal[number]
        if result["error"] is not None:
            tally.refuse(number, result["reason"], result["error"])
            continue
        sample, drafts = records[number], [Draft(**draft) for draft in result[DRAFTS]]
        verdicts = keeper.judge(sample, drafts)
        tally.add(sample, drafts, verdicts)
        yield number, verdicts
