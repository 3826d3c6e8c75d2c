"""The shipped configs on records like the paper's, with the published tokenizer: nothing is refused."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from paper_mix import write_paper_mix

from vr1_jax.config import load_config
from vr1_jax.data.collate import PromptLayout
from vr1_jax.data.quarantine import Quarantine
from vr1_jax.data.tokenizer import load_tokenizer
from vr1_jax.media.frames import MAX_ASPECT_RATIO, frame_size, smart_resize
from vr1_jax.models.families import parse_hf_config
from vr1_jax.tools.world.model import tiny_config
from vr1_jax.training import setup
from vr1_jax.training.bucket_check import largest_media
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# The demonstrations have records of their own, all of one size.
OF_THE_PAPER = sorted({path.stem for path in CONFIGS.glob("*.py")} - {"demo", "shortcut"})
QUESTION = 128 + 90  # tokens of a question and of the words around it
RECORDS = 96
STEPS = RECORDS // 8 + 6  # at least an epoch: each of six groups of records may end with a batch that is not full


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_no_shape_that_upstream_accepts_is_refused(name):
    data = load_config(CONFIGS / f"{name}.py").data
    vision = parse_hf_config(tiny_config()).vision
    for kind, largest in largest_media(data, vision).items():
        needed = dataclasses.replace(largest, tokens=largest.tokens + QUESTION)
        assert any(bucket.holds(needed) for bucket in getattr(data, f"{kind}_buckets")), kind


def test_the_largest_media_are_the_largest_of_all_shapes():
    """Frames of every aspect: none makes more than the formula says, and one nearly as much."""
    data = load_config(CONFIGS / "tgrpo_a100.py").data
    largest = largest_media(data, parse_hf_config(tiny_config()).vision)
    worst = {"video": 0, "image": 0}
    for short in range(1, 60):
        usual = range(short, min(short * MAX_ASPECT_RATIO, 3000) + 1, 1 + short // 10)
        for long in (*usual, *range(126 * short, 130 * short, 3)):  # the widest that still grow
            rows, columns = frame_size(short, long, 16, data.frames)
            worst["video"] = max(worst["video"], rows * columns // 196)
            rows, columns = smart_resize(short, long, data.images.min_pixels, data.images.max_pixels)
            worst["image"] = max(worst["image"], rows * columns // 196)
    assert worst["video"] <= largest["video"].patches
    assert worst["image"] <= largest["image"].patches
    assert worst["video"] >= 1024  # within a hundredth: not far above what happens


@pytest.fixture(scope="module")
def world(shared_data, tmp_path_factory):
    """Records, media, and a tiny model with the published tokenizer."""
    out = tmp_path_factory.mktemp("paper") / "world"
    write_paper_mix(out, RECORDS)
    published = shared_data / "hf/Qwen2.5-VL-7B-Instruct"
    model = out / "model"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "generation_config.json"):
        shutil.copy(published / name, model / name)
    config = tiny_config() | {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    config |= {
        name: value
        for name, value in json.loads((published / "config.json").read_text()).items()
        if name.endswith("token_id") or name == "vocab_size"
    }
    config |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    config["vision_config"] |= {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "fullatt_block_indexes": [0],
        "out_hidden_size": 32,
    }
    (model / "config.json").write_text(json.dumps(config))
    return out


def shipped(name, world, run, **changes):
    """The config as it is, but for its files, its answers' lengths and its arithmetic."""
    config = load_config(CONFIGS / f"{name}.py")
    data = dataclasses.replace(
        config.data,
        records=(str(world / "records.json"),),
        media_root=str(world / "media"),
        workers=0,
        answer_tokens=128,
    )
    sampling = dataclasses.replace(config.rollout.sampling, max_new_tokens=8)
    rollout = dataclasses.replace(config.rollout, group=2, shuffled_group=2, sampling=sampling)
    changes = {
        "data": data,
        "rollout": rollout,
        "run": str(run),
        "compute_dtype": "float32",
        "steps": STEPS,
    } | changes
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("name", ["sft_a100", "tgrpo_a100", "video_r1_upstream", "video_r1_upstream_sft"])
def test_every_record_of_an_epoch_reaches_its_batch(world, tmp_path, name):
    """The data of a run without its model: every record is measured, decoded and padded into its bucket."""
    config = shipped(name, world, tmp_path / "run")
    (tmp_path / "run").mkdir()
    model_config = parse_hf_config(json.loads((world / "model/config.json").read_text()))
    layout = PromptLayout.of(model_config, config.data.positions, config.data.spacing)
    tokenizer, quarantine = load_tokenizer(world / "model"), Quarantine(tmp_path / "run/quarantine.jsonl")
    pipeline = setup.make_pipeline(config, config.data.records, tokenizer, layout, quarantine)
    seen, shapes, needed, padded = set(), Counter(), 0, 0
    with pipeline.batches() as batches:
        for _ in range(pipeline.steps_per_epoch):
            batch = next(batches)
            assert batch.refusals == []
            seen |= {row["index"] for row in batch.rows}
            shapes[batch.kind, batch.bucket] += 1
            needed += batch.ordered["mask"].sum()
            padded += batch.ordered["mask"].size
    assert pipeline.unreadable == []
    assert seen == set(range(RECORDS))
    assert len(shapes) == 6  # all buckets are for something
    assert 1 - needed / padded < 0.3  # tokens; with one bucket for each kind 0.6


@pytest.fixture(scope="module")
def sft(world, tmp_path_factory):
    """An epoch of sft_a100."""
    run = tmp_path_factory.mktemp("runs") / "sft"
    train(shipped("sft_a100", world, run, model=str(world / "model"), from_scratch=True))
    return run


def assert_an_epoch_without_refusal(run: Path, config) -> None:
    sizes = np.load(run / "sizes.npy")
    assert sizes.shape == (RECORDS, 3)
    assert (sizes > 0).all()
    assert not (run / "quarantine.jsonl").exists()
    lines = read_metrics(run)
    assert len(lines) == STEPS
    assert all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.slow
def test_an_epoch_of_supervised_training(world, sft):
    assert_an_epoch_without_refusal(sft, shipped("sft_a100", world, sft))


@pytest.mark.slow
def test_an_epoch_of_t_grpo(world, sft, tmp_path):
    config = shipped("tgrpo_a100", world, tmp_path / "rl", model=str(sft))
    train(config)
    assert_an_epoch_without_refusal(tmp_path / "rl", config)
    lines = read_metrics(tmp_path / "rl")
    assert {"learned_video", "learned_image"} <= lines[0].keys()
