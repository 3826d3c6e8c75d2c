"""Runs of a few steps on a world of a few questions, for tests of the training loop and its processes."""

import dataclasses
import json
from pathlib import Path

from vr1_jax.config import CheckpointConfig, DataConfig, MeshConfig, OptimizerConfig, RolloutConfig, TrainConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.media.frames import FrameBudget, ImageBudget
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.tools.world.write import World, write_world

PIXELS = 56 * 56


def write_small_world(out: Path) -> None:
    """With a model of one layer in each tower: compiling is what these tests take time for."""
    write_world(out, World(videos=16, images=8, heldout=6, tasks=("blinks", "shape")))
    config = json.loads((out / "tiny/config.json").read_text())
    config |= {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    config["rope_scaling"]["mrope_section"] = [2, 3, 3]
    config["vision_config"] |= {"depth": 1, "fullatt_block_indexes": [0], "out_hidden_size": 64}
    (out / "tiny/config.json").write_text(json.dumps(config))


def sft_config(world, run, **changes) -> TrainConfig:
    data = DataConfig(
        records=(str(world / "train.json"),),
        heldout=(str(world / "heldout.json"),),
        media_root=str(world / "media"),
        video_buckets=(Bucket(4, 16, 192),),
        image_buckets=(Bucket(1, 16, 192),),
        frames=FrameBudget(max_frames=8, min_pixels=PIXELS, max_pixels=PIXELS),
        images=ImageBudget(min_pixels=PIXELS, max_pixels=PIXELS),
        answer_tokens=48,
        workers=0,
    )
    config = TrainConfig(
        stage="sft",
        model=str(world / "tiny"),
        run=str(run),
        from_scratch=True,
        steps=4,
        data=data,
        prompts_per_step=4,
        compute_dtype="float32",
        mesh=MeshConfig(fsdp=2, tensor=2, data=2, rollout_tensor=2),
        rollout=RolloutConfig(group=2, shuffled_group=2, sampling=SamplingConfig(max_new_tokens=8)),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", total_steps=4, clip_norm=1.0),
        checkpoint=CheckpointConfig(every=2),
    )
    return dataclasses.replace(config, **changes)


def rl_config(world, sft, run, **changes) -> TrainConfig:
    changes = {"stage": "rl", "model": str(sft), "from_scratch": False} | changes
    return sft_config(world, run, **changes)
