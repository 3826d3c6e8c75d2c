import contextlib
import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_world import BUCKETS, batching, encoder_of, layout_of, record, write_records, write_source

from vr1_jax.data.collate import Bucket
from vr1_jax.data.pipeline import Pipeline
from vr1_jax.data.quarantine import Quarantine
from vr1_jax.data.sources import Source
from vr1_jax.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """200 records of which one in twenty has damaged or missing media."""
    return write_source(tmp_path_factory.mktemp("source"), images=140, videos=60, bad_share=0.05)


@pytest.fixture
def make(source, tiny_tokenizer, media):
    def make(rows=4, sources=(source,), reader=media, **settings):
        names = ("sizes", "known", "shard_index", "shard_count")
        pipeline_settings = {name: settings.pop(name) for name in names if name in settings}
        supervised = settings.pop("supervised", None)
        encoder = encoder_of(tiny_tokenizer, supervised=supervised)
        chosen = batching(rows, **settings)
        return Pipeline(sources, encoder, layout_of(tiny_tokenizer), reader, chosen, **pipeline_settings)

    return make


def take(pipeline, steps, start=None, workers=0, signal_children=False):
    """`signal_children`: once all processes work, SIGTERM to each but this one, as schedulers send it."""
    with pipeline.batches(start, workers=workers) as batches:
        taken = [next(batches)]
        if signal_children:
            children = descendants(os.getpid())
            assert len(children) >= 2 * workers
            for child in children:
                os.kill(child, signal.SIGTERM)
        return taken + [next(batches) for _ in range(steps - 1)], batches.state()


def descendants(process: int) -> list[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = [child for child, parent in parents.items() if parent == process]
    return found + [further for child in found for further in descendants(child)]


def content(batch) -> dict:
    """Everything of a batch, comparable."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    for name in ("ordered", "shuffled", "answers"):
        if fields[name] is not None:
            fields[name] = {key: (array.shape, array.tobytes()) for key, array in fields[name].items()}
    return fields | {"row_ids": fields["row_ids"].tolist()}


def test_batches_hold_one_kind_in_its_bucket(make, source):
    batches, _ = take(make(shuffle="frames"), 12)
    assert {batch.kind for batch in batches} == {"image", "video"}
    for batch in batches:
        bucket = BUCKETS[batch.kind][0]
        assert batch.bucket == bucket
        assert batch.ordered["patches"].shape == (4, bucket.slices, bucket.patches, 1176)
        assert {row["is_video"] for row in batch.rows} == {batch.kind == "video"}
        for row in batch.rows:  # a record comes with its own question and its own media, bad ones never
            sample = source.records[row["index"]]
            assert (row["problem"], row["path"], row["solution"]) == (sample.problem, sample.path, sample.solution)
            assert sample.path.split(".")[0] not in ("bad", "missing")
        if batch.kind == "image":
            assert batch.shuffled is None
        else:
            assert (batch.shuffled["patches"] != batch.ordered["patches"]).any(axis=(1, 2, 3)).all()
            assert all(sorted(row["order"]) == list(range(row["frames"])) for row in batch.rows)
            assert batch.shuffled["positions"] is batch.ordered["positions"]


def test_shuffled_slices_share_the_pixels(make):
    batches, _ = take(make(shuffle="slices"), 6)
    for batch in (batch for batch in batches if batch.kind == "video"):
        assert batch.shuffled["patches"] is batch.ordered["patches"]
        assert (batch.shuffled["visual_slots"] != batch.ordered["visual_slots"]).any(axis=1).all()


def test_resumes_exactly_wherever_it_stopped(make):
    pipeline = make(rows=8, shuffle="frames")
    whole, _ = take(pipeline, 10)
    assert any(batch.refusals for batch in whole)
    for stop in (1, 4, 7):
        _, state = take(make(rows=8, shuffle="frames"), stop)
        state = json.loads(json.dumps(state))
        rest, _ = take(make(rows=8, shuffle="frames"), 10 - stop, state)
        assert [content(batch) for batch in rest] == [content(batch) for batch in whole[stop:]]


def test_refills_are_of_the_steps_own_group_and_change_nothing(make):
    pipeline = make(rows=4, shuffle="frames")
    whole, state = take(pipeline, 8)
    halves = [make(rows=4, shuffle="frames", shard_index=index, shard_count=2) for index in range(2)]
    with contextlib.ExitStack() as stack:
        batches, left, right = (stack.enter_context(each.batches()) for each in (pipeline, *halves))
        seen = set()
        for step in range(8):
            batch = next(batches)
            assert content(batch) == content(whole[step])
            further = [batches.refill(number).result() for number in (1, 2)]
            for number, refill in enumerate(further, 1):
                assert (refill.step, refill.kind, refill.bucket) == (step, batch.kind, batch.bucket)
                assert refill.row_ids.tolist() == [4 * number + row for row in range(4)]
                assert (refill.shuffled is None) == (batch.shuffled is None)
                assert refill.rows != batch.rows
                seen |= {(step, row["index"]) for row in refill.rows}
            assert further[0].rows != further[1].rows
            next(left), next(right)
            parts = [half.refill(2).result() for half in (left, right)]
            assert parts[0].rows + parts[1].rows == further[1].rows
            assert content(batches.refill(2).result()) == content(further[1])
        assert batches.state() == state
    assert len(seen) > 50  # of 64 drawn: hardly one twice in a step


def test_workers_change_nothing(make):
    whole, state = take(make(shuffle="frames"), 8)
    found, its_state = take(make(shuffle="frames"), 8, workers=2, signal_children=True)
    assert [content(batch) for batch in found] == [content(batch) for batch in whole]
    assert its_state == state
    rest, _ = take(make(shuffle="frames"), 3, {**state, "step": 5}, workers=1)
    assert [content(batch) for batch in rest] == [content(batch) for batch in whole[5:]]


def test_two_processes_have_the_halves_of_one(make):
    whole, _ = take(make(), 20)
    halves = [take(make(shard_index=index, shard_count=2), 20)[0] for index in range(2)]
    for one, left, right in zip(whole, *halves, strict=True):
        assert left.bucket == right.bucket == one.bucket
        assert left.rows + right.rows == one.rows
        assert [*left.row_ids, *right.row_ids] == [*one.row_ids]
        for name, array in one.ordered.items():
            np.testing.assert_array_equal(np.concatenate([left.ordered[name], right.ordered[name]]), array)


def run_through(make, directory, epochs, stop=None, rows=20):
    """A run's order and quarantine file, interrupted after `stop` steps if asked to."""
    path = directory / "quarantine.jsonl"
    steps = epochs * make(rows=rows).steps_per_epoch
    order, state = [], None
    for part in [steps] if stop is None else [stop, steps - stop]:
        quarantine = Quarantine(path)
        pipeline = make(rows=rows, known=quarantine.known)
        quarantine.start(pipeline.unreadable, len(pipeline.records))
        with pipeline.batches(state) as batches:
            for _ in range(part):
                batch = next(batches)
                order.append([row["index"] for row in batch.rows])
                quarantine.add(batch.refusals, served=(batch.step + 1) * rows)
            state = batches.state()
    return order, path.read_text()


def test_two_epochs_twice_and_after_a_restart(make, source, tmp_path):
    runs = []
    for name, stop in (("once", None), ("again", None), ("restarted", 5)):
        (tmp_path / name).mkdir()
        runs.append(run_through(make, tmp_path / name, epochs=2, stop=stop))
    assert runs[0] == runs[1] == runs[2]
    order, quarantine = runs[0]
    bad = {s.index for s in source.records if s.path.split(".")[0] in ("bad", "missing")}
    assert 5 < len(bad) < 20
    refused = [json.loads(line)["index"] for line in quarantine.splitlines()]
    assert sorted(refused) == sorted(bad)
    assert {index for step in order for index in step} == set(range(200)) - bad


def test_too_many_bad_records_end_the_run(make, tmp_path):
    bad = write_source(tmp_path, images=60, videos=0, bad_share=0.5, files=2)
    quarantine = Quarantine(max_share=0.2, minimum=20)

    def use_all(batches):
        for batch in batches:
            quarantine.add(batch.refusals, served=(batch.step + 1) * 10)

    with make(sources=[bad], rows=10).batches() as batches, pytest.raises(UserError, match=r"of .* records"):
        use_all(batches)


def test_nothing_but_bad_records_is_one_error(make, tmp_path):
    bad = write_source(tmp_path, images=30, videos=0, bad_share=1.0, files=1)
    with make(sources=[bad]).batches() as batches, pytest.raises(UserError, match="kind image in a row"):
        next(batches)


def test_unreadable_records_are_known_before_the_first_step(make, source, tmp_path):
    records = [record(0, "image", "0.png"), record(1, "sound", "0.png"), record(2, "image", "../0.png")]
    mixed = Source(write_records(tmp_path / "r.json", records), source.media_root)
    pipeline = make(sources=[mixed])
    assert [(refusal.index, refusal.reason) for refusal in pipeline.unreadable] == [(1, "record"), (2, "path")]
    batches, _ = take(pipeline, 2)
    assert {row["index"] for batch in batches for row in batch.rows} == {0}


def test_weights_set_the_kinds_shares(make):
    pipeline = make(weights={"image": 1.0, "video": 3.0})
    kinds = [pipeline.groups[pipeline._order.batch(step)[0]].kind for step in range(pipeline.steps_per_epoch)]
    assert abs(kinds.count("video") / len(kinds) - 0.75) < 0.02
    with pytest.raises(UserError, match="wants text records, and there are none"):
        make(weights={"image": 1.0, "text": 1.0})


def test_a_kind_without_a_weight_keeps_its_share(make, source, tmp_path):
    """100 of 300 records are text: a third of the steps, whatever images and videos make of the rest."""
    text = [record(1000 + n, "text", "") | {"path": None} for n in range(100)]
    texts = Source(write_records(tmp_path / "text.json", text), source.media_root)
    buckets = BUCKETS | {"text": (Bucket(1, 4, 256),)}
    for weights, expected in (
        ({"image": 0.75, "video": 0.25}, {"text": 1 / 3, "image": 1 / 2, "video": 1 / 6}),
        ({"image": 0.0, "video": 1.0}, {"text": 1 / 3, "image": 0, "video": 2 / 3}),
    ):
        pipeline = make(sources=(source, texts), weights=weights, buckets=buckets)
        kinds = [pipeline.groups[pipeline._order.batch(step)[0]].kind for step in range(pipeline.steps_per_epoch)]
        assert {kind: kinds.count(kind) / len(kinds) for kind in expected} == pytest.approx(expected, abs=0.02)


class SlowMedia:
    """Media that tells when it is read."""

    def __init__(self):
        self.read = threading.Semaphore(0)

    def image(self, path, budget):
        self.read.release()
        return np.zeros((56, 56, 3), np.uint8)

    video = frame_folder = image


def test_the_next_batch_is_decoded_while_this_one_is_used(make, tmp_path):
    """Without workers too; the state stays that of the batch handed out."""
    images, media = write_source(tmp_path, images=20, videos=0, files=2), SlowMedia()
    with make(sources=[images], reader=media).batches() as batches:
        next(batches)
        for _ in range(4 + 2 * 4):  # of this batch, and of the two ahead
            assert media.read.acquire(timeout=60)
        assert batches.state()["step"] == 1


def test_over_long_prompts_are_refused_never_cut(make):
    small = {"image": (Bucket(1, 16, 256),), "video": (Bucket(4, 16, 100),)}
    with pytest.raises(UserError, match="too_long"):
        take(make(buckets=small), 20)


def test_several_buckets_of_a_kind_follow_the_sizes(make, source):
    buckets = {"image": BUCKETS["image"], "video": (Bucket(4, 16, 256), Bucket(4, 16, 512))}
    with pytest.raises(UserError, match="2 buckets for video need the records' sizes"):
        make(buckets=buckets)
    sizes = np.array([[1 if not s.is_video else 4, 16, 300 if s.index % 2 else 200] for s in source.records])
    sizes[[not s.is_video for s in source.records], 2] = 200
    pipeline = make(buckets=buckets, sizes=sizes)
    for batch in take(pipeline, 12)[0]:
        if batch.kind == "video":
            assert {row["index"] % 2 for row in batch.rows} == {int(batch.bucket.tokens == 512)}
    sizes[0] = 1, 4000, 200
    assert [refusal.reason for refusal in make(buckets=buckets, sizes=sizes).unreadable] == ["too_long"]


def test_supervised_batches_bring_answers(make, tiny_tokenizer):
    (batch, *_), _ = take(make(supervised="upstream", answer_tokens=64), 1)
    for row in range(4):
        text = tiny_tokenizer.decode(batch.answers["tokens"][row][batch.answers["mask"][row]].tolist())
        assert text.startswith(f"<think>I look.</think>\n{batch.rows[row]['solution']}")
    assert (batch.answers["prompt_loss"] <= batch.ordered["mask"]).all()
    assert batch.answers["prompt_loss"].any()
    with pytest.raises(UserError, match="answer_tokens"):
        make(supervised="answer")


def test_a_state_of_other_data_is_refused(make):
    _, state = take(make(), 1)
    with pytest.raises(UserError, match="other records"):
        make(rows=2).batches(state)
    with pytest.raises(UserError, match="do not divide"):
        make(shard_count=3)


class WorkerWitness:
    """Media that tells about the process it is read in."""

    def image(self, path, budget):
        import os
        import sys

        backends = sys.modules["jax._src.xla_bridge"]._backends if "jax._src.xla_bridge" in sys.modules else {}
        assert os.environ["JAX_PLATFORMS"] == "cpu"
        assert not backends
        return np.full((56, 56, 3), os.getpid() % 255, np.uint8)

    video = frame_folder = image


def test_workers_are_other_processes_without_a_device(make, tmp_path):
    import os

    images = write_source(tmp_path, images=20, videos=0, files=2)
    (batch,), _ = take(make(sources=[images], reader=WorkerWitness()), 1, workers=1)
    assert batch.ordered["patches"].max() != os.getpid() % 255
