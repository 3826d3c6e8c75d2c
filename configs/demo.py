"""python scripts/demo.py        (this config is its second stage; by itself it needs the first one's output)

T-GRPO of a model of one million parameters on the built-in world, on two CPU cores in some minutes.

The world's questions need the order of frames (how often does it light up, which word do the letters spell)
or do not (which shape, which word). SFT stops at a beginner's level, so that there is something left to learn.
"""

import dataclasses
from pathlib import Path

from vr1_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, RolloutConfig, TrainConfig, WatchConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.media.frames import FrameBudget, ImageBudget
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.tools.world.write import World

RUNS = "runs/demo"
WORLD = World(
    seed=0, videos=1600, images=400, heldout=240, tasks=("blinks", "spelled_word", "shape", "written_word")
)
PIXELS = WORLD.size**2  # frames stay as they are: 4 visual tokens each
SFT_STEPS, RL_STEPS = 250, 150
# SFT stops at the first of these steps at which the held-out loss is a beginner's.
SFT_STOPS, BEGINNERS_LOSS = range(125, SFT_STEPS, 25), 0.2

DATA = DataConfig(
    records=(f"{RUNS}/world/train.json",),
    heldout=(f"{RUNS}/world/heldout.json",),
    media_root=f"{RUNS}/world/media",
    video_buckets=(Bucket(slices=4, patches=16, tokens=192),),
    image_buckets=(Bucket(slices=1, patches=16, tokens=192),),
    frames=FrameBudget(max_frames=8, min_pixels=PIXELS, max_pixels=PIXELS),
    images=ImageBudget(min_pixels=PIXELS, max_pixels=PIXELS),
    answer_tokens=48,
    workers=0,
)


def get_sft_config() -> TrainConfig:
    return TrainConfig(
        stage="sft",
        model=f"{RUNS}/world/tiny",
        run=f"{RUNS}/sft",
        from_scratch=True,
        steps=SFT_STEPS,
        data=DATA,
        prompts_per_step=32,
        compute_dtype="float32",
        rollout=RolloutConfig(sampling=SamplingConfig(max_new_tokens=48)),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", total_steps=SFT_STEPS, warmup_steps=20, clip_norm=1.0, b2=0.95
        ),
        watch=WatchConfig(evaluate_every=SFT_STEPS, evaluate_answers=4),
    )


def get_config() -> TrainConfig:
    return dataclasses.replace(
        get_sft_config(),
        stage="rl",
        model=f"{RUNS}/sft",
        run=f"{RUNS}/tgrpo",
        from_scratch=False,
        steps=RL_STEPS,
        prompts_per_step=16,
        rollout=RolloutConfig(group=8, shuffled_group=4, sampling=SamplingConfig(max_new_tokens=48)),
        # Answers here have some 30 tokens: the paper's length bonus, for 320 to 512, would never be paid.
        # The cold start is a beginner, not a model worth staying near: a quarter of the paper's penalty.
        grpo=dataclasses.replace(GRPOConfig.paper(), length_bonus=0.0, beta=0.01),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, schedule="cosine", total_steps=RL_STEPS, warmup_steps=20, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every=50),
        watch=WatchConfig(evaluate_every=50, evaluate_answers=4),
    )


def placed(config: TrainConfig, out: Path, seed: int, steps: int | None = None) -> TrainConfig:
    """The config with its files under `out` instead of `RUNS`, with this seed and number of steps."""
    steps = steps or config.steps

    def moved(path: str) -> str:
        return str(out / Path(path).relative_to(RUNS))

    data = dataclasses.replace(
        config.data,
        records=tuple(map(moved, config.data.records)),
        heldout=tuple(map(moved, config.data.heldout)),
        media_root=moved(config.data.media_root),
    )
    warmup = min(config.optimizer.warmup_steps, steps)
    optimizer = dataclasses.replace(config.optimizer, total_steps=steps, warmup_steps=warmup)
    every = min(config.watch.evaluate_every, steps)
    return dataclasses.replace(
        config,
        model=moved(config.model),
        run=moved(config.run),
        steps=steps,
        seed=seed,
        data=data,
        optimizer=optimizer,
        watch=dataclasses.replace(config.watch, evaluate_every=every),
    )
