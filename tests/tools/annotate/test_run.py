"""From collected answers to a set that supervised training reads."""

import dataclasses
import json

import pytest
from tiny_world import BUCKETS, encoder_of, layout_of, write_source

from vr1_jax.data.pipeline import Batching, Pipeline
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.sources import Source
from vr1_jax.data.tokenizer import load_tokenizer
from vr1_jax.errors import UsageError, UserError
from vr1_jax.evaluation.journal import Journal
from vr1_jax.media.reader import MediaReader
from vr1_jax.tools.annotate.config import AnnotateConfig
from vr1_jax.tools.annotate.rules import Draft, KeepRules
from vr1_jax.tools.annotate.run import DRAFTS, path_beside, write_kept
from vr1_jax.tools.world.model import tiny_config, write_model_directory

LONGEST = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Records without reasoning."""
    found = write_source(tmp_path_factory.mktemp("source"), images=6, videos=6, files=2)
    records = [{k: v for k, v in found.records.raw(n).items() if k != "process"} for n in range(12)]
    found.records.path.write_text(json.dumps(records))
    return Source(RecordFile(found.records.path), found.media_root)


def draft(number: int, thought: str) -> Draft:
    return Draft(f"<think>\n{thought}\n</think>\n\n<answer>{number}</answer>", 30, len(thought.split()), True)


@pytest.fixture
def make(source, tmp_path):
    """Judges scripted answers: a good one, a wrong one and one without tags to each record but the last two."""
    config = AnnotateConfig(tmp_path, source.records.path, source.media_root, tmp_path / "cot.json")

    def run(**rules):
        chosen = dataclasses.replace(config, keep=KeepRules(**{"min_tokens": 4} | rules))
        with Journal(path_beside(config.out, "samples.jsonl"), {}) as journal:
            for number in range(10):
                good = draft(number, f"I look once, then again, and see number {number}.")
                wrong, bare = draft(99, "I see something else in there."), Draft("7", 1, 0, True)
                drafts = [dataclasses.asdict(each) for each in (wrong, bare, good)]
                journal.add([(number, {"error": None, DRAFTS: drafts})])
            refusal = {"error": "gone.mp4: No such file", "reason": "path"}
            journal.add([(10, refusal), (11, refusal | {"reason": "timeout"})])
            return write_kept(chosen, source.records, journal)

    run.config = config
    return run


def test_supervised_training_reads_the_output(source, make, tmp_path):
    make()
    out = RecordFile(make.config.out)
    assert len(out) == 10
    assert [out.raw(n) for n in range(10)] == [
        source.records.raw(n)
        | {"pass_rate": 1 / 3, "process": f"<think>I look once, then again, and see number {n}.</think>"}
        for n in range(10)
    ]
    write_model_directory(tmp_path / "tiny", tiny_config())
    tokenizer = load_tokenizer(tmp_path / "tiny")
    with MediaReader() as media:
        pipeline = Pipeline(
            [Source(out, source.media_root)],
            encoder_of(tokenizer, supervised="answer"),
            layout_of(tokenizer),
            media,
            Batching(rows=2, buckets=BUCKETS, answer_tokens=LONGEST),
        )
        seen = {}
        with pipeline.batches() as batches:
            for _ in range(pipeline.steps_per_epoch):
                batch = next(batches)
                assert not batch.refusals
                for n, row in enumerate(batch.rows):
                    tokens = batch.answers["tokens"][n][batch.answers["mask"][n]]
                    seen[row["index"]] = tokenizer.decode(tokens.tolist())
    assert seen == {n: f"{out[n].process}\n{out[n].solution}" for n in seen}
    assert len(seen) >= 8


def test_the_report_counts_everything(make):
    tally = make()
    report = json.loads(path_beside(make.config.out, "report.json").read_text())
    assert report["records"] == {
        "all": 12,
        "refused": 2,
        "annotated": 10,
        "by_answers_kept": {"1": 10},
    }
    assert report["answers"]["dropped"] == {"format": 10, "reward": 10}
    assert (report["answers"]["sampled"], report["answers"]["kept"]) == (30, 10)
    assert report["answers"]["mean_reward"] == pytest.approx(2 / 9)  # one word alone has no pairs for ROUGE-2
    assert report["refused"]["by_reason"] == {"path": 1, "timeout": 1}
    assert report["refused"]["records"][0] == {"record": 10, "reason": "path", "error": "gone.mp4: No such file"}
    examples = report["examples"]
    assert {name: len(some) for name, some in examples.items()} == {"kept": 3, "format": 3, "reward": 3}
    assert examples["format"][0]["why"] == "has no <think>"
    assert report["settings"]["keep"]["min_tokens"] == 4
    assert "reward              10   dropped" in tally.table()


def test_every_record_that_could_be_asked_is_rated_whatever_is_kept(source, make):
    """Of three answers one is right, and all of them where nothing is asked for."""
    with pytest.raises(UserError):
        make(min_tokens=400)
    rated = RecordFile(path_beside(make.config.out, "rated.jsonl"))
    assert [rated.raw(n) for n in range(len(rated))] == [
        source.records.raw(n) | {"pass_rate": 1 / 3} for n in range(10)
    ]
    make(min_reward=0.0)
    assert {RecordFile(path_beside(make.config.out, "rated.jsonl"))[n].pass_rate for n in range(10)} == {1.0}


def test_nothing_kept_writes_no_set(make):
    with pytest.raises(UserError, match="format 10, reward 10, length 10, record refused: path 1"):
        make(min_tokens=400)
    assert not make.config.out.exists()
    assert path_beside(make.config.out, "report.json").exists()


@pytest.mark.parametrize("change", [{"samples": 0}, {"seed": -1}, {"rows": 0}])
def test_settings_that_make_no_sense_are_refused(make, change):
    with pytest.raises(UsageError, match=next(iter(change))):
        dataclasses.replace(make.config, **change)
