"""What a run says about held-out questions: each counted once, by source, shuffled and blind."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_runs import sft_config, write_small_world

from vr1_jax.config import MeshConfig, OptimizerConfig, WatchConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.data.pipeline import Batch
from vr1_jax.training import heldout
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "world"
    write_small_world(out)
    records = [r for r in json.loads((out / "train.json").read_text()) if r["data_type"] == "video"]
    (out / "eight.json").write_text(json.dumps(records[:8]))
    (out / "nine.json").write_text(json.dumps([*records[:8], records[0] | {"path": "./lost.mp4"}]))
    return out


def test_heldout_loss_is_the_loss_of_training_and_a_still_model_is_called_blind(world, tmp_path, caplog):
    """One step on eight records that hardly moves the weights; the same eight are held out, and a lost one."""
    records, asked = (str(world / "eight.json"),), (str(world / "nine.json"),)
    config = sft_config(
        world,
        tmp_path / "run",
        steps=1,
        prompts_per_step=8,
        mesh=MeshConfig(data=4, tensor=2),
        optimizer=OptimizerConfig(learning_rate=1e-12),
        watch=WatchConfig(evaluate_every=1),
    )
    train(dataclasses.replace(config, data=dataclasses.replace(config.data, records=records, heldout=asked)))
    (line,) = read_metrics(tmp_path / "run")
    # fp32, the same tokens in another order of summation.
    assert line["heldout_loss"] == pytest.approx(line["loss"], rel=1e-5)
    assert line["heldout_refused"] == 1
    (refused,) = (json.loads(text) for text in (tmp_path / "run/heldout_refused.jsonl").read_text().splitlines())
    assert refused["index"] == 8
    assert {"heldout_accuracy_shuffled", "heldout_accuracy_blind", "heldout_accuracy_blind_error"} <= line.keys()
    assert "hardly better than blind" in caplog.text  # a random model answers nothing


def batch(kind, ordered, shuffled):
    bucket = Bucket(1, 4, 5)
    return Batch(0, 0, kind, bucket, ordered, shuffled, None, [], np.zeros(1, np.int32), [], {})


def test_views_differ_in_what_is_seen_only():
    patches = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    ordered = {"tokens": np.ones((1, 5), np.int32), "patches": patches}
    views = heldout._views(batch("image", ordered, None))
    assert list(views) == ["ordered", "blind"]
    assert views["blind"]["tokens"] is ordered["tokens"]
    assert len(np.unique(views["blind"]["patches"])) == 1
    assert list(heldout._views(batch("video", ordered, ordered))) == ["ordered", "shuffled", "blind"]
    assert list(heldout._views(batch("text", ordered, None))) == ["ordered"]


@pytest.mark.parametrize(("gains", "warned"), [([0.0, 0.0, 1.0], True), ([1.0, 1.0, 0.9], False)])
def test_blindness_alarm_asks_for_two_standard_errors(gains, warned, caplog):
    heldout._warn_of_blindness(np.array(gains))
    assert ("hardly better than blind" in caplog.text) == warned
