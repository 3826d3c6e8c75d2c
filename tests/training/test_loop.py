"""Whole runs on the built-in world: they learn, they resume to the bit, they refuse what cannot work."""

import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest
from commands import load_command
from tiny_runs import rl_config, sft_config, write_small_world

from vr1_jax import command_line
from vr1_jax.config import CheckpointConfig, OptimizerConfig, WatchConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.errors import UsageError, UserError
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.training import loop
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics
from vr1_jax.weights.loading import load_model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "world"
    write_small_world(out)
    return out


@pytest.fixture(scope="module")
def sft(world, tmp_path_factory):
    """An uninterrupted SFT run of four steps."""
    run = tmp_path_factory.mktemp("runs") / "sft"
    train(sft_config(world, run, watch=WatchConfig(evaluate_every=4)))
    return run


def parameters(run):
    model, _ = load_model(run)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def test_sft_learns_and_is_evaluated(sft):
    lines = read_metrics(sft)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[-1]["heldout_accuracy"] <= 1
    assert {f"heldout_accuracy/built-in/{task}" for task in ("blinks", "shape")} <= lines[-1].keys()
    environment = json.loads((sft / "environment.json").read_text())
    assert environment["config"]["seed"] == 0
    assert environment["versions"]["jax"] == jax.__version__


def test_stopped_and_resumed_sft_is_the_same_to_the_bit(world, sft, tmp_path):
    train(sft_config(world, tmp_path / "run", steps=2))
    train(sft_config(world, tmp_path / "run"))
    for resumed, straight in zip(parameters(tmp_path / "run"), parameters(sft), strict=True):
        np.testing.assert_array_equal(resumed, straight)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2, 3]


@pytest.mark.parametrize(("schedule", "horizon"), [("constant", None), ("linear", 100)])
def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_never_ended(world, tmp_path, schedule, horizon):
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule=schedule, total_steps=horizon, clip_norm=1.0)
    for steps in (2, 4):
        state = train(sft_config(world, tmp_path / "prolonged", steps=steps, optimizer=optimizer))
        assert int(state.step) == steps
    ended = [line["step"] for line in read_metrics(tmp_path / "prolonged")]
    train(sft_config(world, tmp_path / "straight", optimizer=optimizer))
    for after, at_once in zip(parameters(tmp_path / "prolonged"), parameters(tmp_path / "straight"), strict=True):
        np.testing.assert_array_equal(after, at_once)
    assert ended == [0, 1, 2, 3]


def test_where_the_rate_has_an_end_that_must_be_moved_with_the_steps(world, sft, tmp_path):
    with pytest.raises(UsageError, match=r"steps 6 make 6 updates, .* cosine .* optimizer.total_steps 4"):
        sft_config(world, tmp_path / "run", steps=6)
    config = sft_config(world, tmp_path / "run", steps=2)
    train(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, total_steps=2)))
    state = train(sft_config(world, tmp_path / "run"))
    assert int(state.step) == 4
    assert any((a != b).any() for a, b in zip(parameters(tmp_path / "run"), parameters(sft), strict=True))


def test_a_run_says_how_it_differs_from_the_presets(world, tmp_path, caplog):
    config = tmp_path / "config.py"
    config.write_text(
        "from pathlib import Path\nfrom tiny_runs import sft_config\n\ndef get_config():\n"
        f"    return sft_config(Path({str(world)!r}), Path({str(tmp_path / 'run')!r}), model='nowhere')\n"
    )
    command = ["--config", str(config), "--sft-aggregation", "sequence"]
    with caplog.at_level("INFO", "vr1_jax"):
        assert load_command("scripts/train.py").main(command) == 2
    for line in (
        "sft_aggregation sequence: paper and fixed token",
        "prompts_per_step 4: paper and upstream and fixed 8",
        "optimizer.schedule cosine: paper and upstream and fixed linear",
    ):
        assert f"  {line}" in caplog.messages


def test_resume_under_another_config_is_refused(world, sft):
    with pytest.raises(UserError, match=r"prompts_per_step 4 -> 8"):
        train(sft_config(world, sft, prompts_per_step=8))


@pytest.fixture(scope="module")
def plain_rl(world, sft, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "rl"
    train(rl_config(world, sft, run))
    return run


def test_rl_run_says_what_it_did(plain_rl):
    lines = read_metrics(plain_rl)
    assert len(lines) == 4
    for line in lines:
        assert line["sampler_gap_max"] < 1e-4  # sampler and trainer are one model
        assert {"reward", "accuracy", "length", "kl", "temporal_signal", "seconds_rollout"} <= line.keys()
    assert len(list((plain_rl / "rollouts").glob("*.json.gz"))) == 4


def test_stopped_and_resumed_rl_is_the_same_to_the_bit(world, sft, plain_rl, tmp_path):
    train(rl_config(world, sft, tmp_path / "run", steps=2))
    train(rl_config(world, sft, tmp_path / "run"))
    for resumed, straight in zip(parameters(tmp_path / "run"), parameters(plain_rl), strict=True):
        np.testing.assert_array_equal(resumed, straight)


def test_inner_epochs_and_refilled_groups(world, sft, tmp_path):
    config = rl_config(
        world,
        sft,
        tmp_path / "run",
        steps=1,
        prompts_per_step=8,
        updates_per_batch=2,
        epochs_per_batch=2,
        refill_rounds=1,
        checkpoint=CheckpointConfig(every=1),
        grpo=dataclasses.replace(GRPOConfig.fixed(), aggregation="token", clip_high=0.28),
    )
    state = train(config)
    assert int(state.step) == 4  # two minibatches, twice
    (line,) = read_metrics(tmp_path / "run")
    assert line["refilled"] in (0, 1)
    assert np.isfinite(line["loss"])
    assert {name for name in line if name.startswith("learned_")} == {"learned_image", "learned_video"}
    assert 0 <= line["learned_image"] + line["learned_video"] <= 1
    assert 0 in (line["learned_image"], line["learned_video"])  # a step is of one kind


def test_refilled_runs_resume_to_the_bit(world, sft, tmp_path):
    for run, stops in (("straight", (3,)), ("resumed", (1, 3))):
        for steps in stops:
            train(rl_config(world, sft, tmp_path / run, steps=steps, refill_rounds=2))
    for resumed, straight in zip(parameters(tmp_path / "resumed"), parameters(tmp_path / "straight"), strict=True):
        np.testing.assert_array_equal(resumed, straight)
    assert max(line["refilled"] for line in read_metrics(tmp_path / "straight")) > 0


def test_a_run_that_learns_nothing_ends_in_one_line(world, tmp_path, monkeypatch):
    def not_finite(state, *_, **__):
        return state, {"loss": np.nan, "grad_norm": np.nan, "tokens": 1.0, "skipped": 1.0, "skipped_in_a_row": 3.0}

    monkeypatch.setattr(loop, "sft_step", not_finite)
    config = sft_config(world, tmp_path / "run", stop_after_skips=3)
    with pytest.raises(UserError, match="step 0: loss or gradient was not finite 3 steps in a row"):
        train(config)
    assert command_line.run("train", lambda: train(config)) == 1


def test_ratios_against_the_samplers_log_probs(world, sft, plain_rl, tmp_path):
    """On policy in fp32 both choices say the same: every ratio is 1."""
    train(rl_config(world, sft, tmp_path / "run", steps=1, old_logps="sampler"))
    (line,), first = read_metrics(tmp_path / "run"), read_metrics(plain_rl)[0]
    assert line["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert line["logp_gap_max"] == pytest.approx(line["sampler_gap_max"])
    assert line["loss"] == pytest.approx(first["loss"], abs=1e-4)


def test_answers_cut_off_are_counted_penalised_and_masked(world, sft, plain_rl, tmp_path):
    """The same answers as the plain run's first step; only those that came to an end are learned from."""
    grpo = dataclasses.replace(GRPOConfig.paper(), mask_cut_off=True, overlong=8, sampler_cap=2.0)
    train(rl_config(world, sft, tmp_path / "run", steps=1, grpo=grpo))
    (line,), first = read_metrics(tmp_path / "run"), read_metrics(plain_rl)[0]
    with gzip.open(next((plain_rl / "rollouts").glob("000000.*"))) as file:
        ordered = [prompt["groups"][0] for prompt in json.load(file)["prompts"]]
    lengths = [len(tokens) for group in ordered for tokens in group["tokens"]]
    stopped = [end for group in ordered for end in group["stopped"]]
    assert line["cut_off"] == first["cut_off"] == pytest.approx(1 - np.mean(stopped))
    assert line["tokens"] == np.dot(lengths, stopped) < first["tokens"] == sum(lengths)
    assert line["overlong_penalty"] == pytest.approx(-np.mean(lengths) / 8)
    assert line["sampler_weight_mean"] == pytest.approx(1, abs=1e-4)  # in fp32 both are one model
    assert not {"overlong_penalty", "sampler_weight_mean"} & first.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grpo": {"overlong": 9}}, "grpo.overlong is 9; answers have at most 8 tokens"),
        ({"grpo": {"sampler_cap": 2.0}, "old_logps": "sampler"}, "grpo.sampler_cap .* set old_logps to trainer"),
    ],
)
def test_options_that_cannot_work_are_refused(world, sft, tmp_path, changes, message):
    grpo = dataclasses.replace(GRPOConfig.paper(), **changes["grpo"])
    with pytest.raises(UsageError, match=message):
        rl_config(world, sft, tmp_path / "run", **changes | {"grpo": grpo})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 6}, "prompts_per_step 6: .* 6 prompts .* over 4 groups of devices"),
        ({"microbatches": 3}, "prompts_per_step 4 does not divide"),
        ({"data": {"records": ("nowhere.json",)}}, "data.records: nowhere.json: no such file"),
        ({"data": {"media_root": "nowhere"}}, "data.media_root: nowhere: no such directory"),
        ({"data": {"sizes": "nowhere.npy"}}, "data.sizes: nowhere.npy: no such file"),
        ({"data": {"cache": "nowhere"}}, "data.cache: nowhere: no such directory"),
        (
            {"data": {"video_buckets": (Bucket(2, 16, 192),)}},
            "none holds 4 slices of 16 patches, the least that data.frames",
        ),
        ({"data": {"video_buckets": (Bucket(4, 12, 192),)}}, "none holds 4 slices of 16 patches"),
        ({"data": {"image_buckets": (Bucket(4, 16, 16),)}}, "16 visual tokens, which leave no room"),
        ({"model": "nowhere"}, "model: nowhere: no config.json"),
        ({"data": {"pass_rate": (0.9, 0.1)}}, "data.pass_rate is 0.9 0.1; .* the lower first"),
        ({"data": {"source_weights": {"a": -1.0}}}, "data.source_weights: 'a' weighs -1.0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(world, tmp_path, changes, message):
    config = sft_config(world, tmp_path / "run")
    data = dataclasses.replace(config.data, **changes.get("data", {}))

    def run():
        train(dataclasses.replace(config, **{**changes, "data": data}))

    with pytest.raises(UsageError, match=message):
        run()
    assert not (tmp_path / "run").exists()
