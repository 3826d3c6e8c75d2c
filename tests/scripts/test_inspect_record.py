"""The command shows a record as training will see it."""

import itertools
import json

import pytest
from commands import load_command
from tiny_world import BUCKETS, encoder_of, layout_of

from vr1_jax.data.pipeline import Batching, Pipeline
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.sources import Source
from vr1_jax.data.tokenizer import load_tokenizer
from vr1_jax.media.reader import MediaReader
from vr1_jax.tools.world.write import World, write_world


@pytest.fixture(scope="module")
def command():
    return load_command("scripts/inspect_record.py").main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "world"
    write_world(out, World(videos=2, images=1, heldout=3))
    return out


def arguments(world, index, *more):
    media = ["--media-root", str(world / "media"), "--frame-pixels", str(56 * 56)]
    return [
        "--records",
        str(world / "train.json"),
        "--index",
        str(index),
        "--model",
        str(world / "tiny"),
        *media,
        *more,
    ]


def index_of(world, data_type):
    records = json.loads((world / "train.json").read_text())
    return next(n for n, record in enumerate(records) if record["data_type"] == data_type)


@pytest.mark.parametrize(("data_type", "visual"), [("video", 4 * 4), ("image", 4)])
def test_a_record_of_the_world(command, world, capsys, data_type, visual):
    index = index_of(world, data_type)
    assert command(arguments(world, index, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["visual_tokens"] == visual
    assert report["text"].count(f"<|{data_type}_pad|>") == visual
    assert len(report["tokens"]) == len(report["supervised"]) == report["prompt_tokens"] + report["target_tokens"]
    assert report["supervised"] == [False] * report["prompt_tokens"] + [True] * report["target_tokens"]

    assert command(arguments(world, index, "--preset", "upstream", "--loss-on", "upstream")) == 0
    printed = capsys.readouterr().out
    assert f"'<|{data_type}_pad|>'  x {visual}\n" in printed
    assert "You are a helpful assistant<|im_end|>" in printed


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_it_shows_what_training_reads(command, world, capsys, stage):
    """Token by token what the data pipeline puts into a batch."""
    tokenizer = load_tokenizer(world / "tiny")
    supervised, longest = ("answer", 64) if stage == "sft" else (None, None)
    batching = Batching(rows=1, buckets=BUCKETS, answer_tokens=longest)
    source = Source(RecordFile(world / "train.json"), world / "media")
    encoder = encoder_of(tokenizer, supervised=supervised)
    with MediaReader() as media:
        pipeline = Pipeline([source], encoder, layout_of(tokenizer), media, batching)
        with pipeline.batches() as batches:
            for batch in itertools.islice(batches, pipeline.steps_per_epoch):
                more = ("--stage", stage, "--image-pixels", str(56 * 56), "--json")
                assert command(arguments(world, batch.rows[0]["index"], *more)) == 0
                report = json.loads(capsys.readouterr().out)
                tokens = batch.ordered["tokens"][batch.ordered["mask"]].tolist()
                assert (batch.answers is None) == (stage == "rl")
                if batch.answers is not None:
                    tokens += batch.answers["tokens"][batch.answers["mask"]].tolist()
                assert report["tokens"] == tokens


def test_mistakes_are_one_line(command, world, tmp_path, capsys):
    index = index_of(world, "video")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{index:06d}.mp4").write_bytes(b"no video")
    for changes, code, reason in (
        (["--index", "3"], 1, "train.json: has 3 records"),
        (["--media-root", str(tmp_path / "nowhere")], 1, f"record {index}: field 'path'"),
        (["--media-root", str(tmp_path)], 1, f"{index:06d}.mp4"),
        (["--model", str(tmp_path)], 1, "no tokenizer.json"),
        (["--frames", "1"], 2, "--frames"),
    ):
        assert command(arguments(world, index, *changes)) == code
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
