"""python scripts/train.py --config configs/sft_a100.py --model Qwen2.5-VL-7B-Instruct

The SFT cold start: one epoch of Video-R1-COT-165k, 16 answers a step, loss on the answers.

Needs    8 x A100 80 GB; Qwen2.5-VL-7B-Instruct; Video-R1-COT-165k.json with its media.
Expect   the loss to fall quickly while the model learns the form of an answer, then slowly.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import MeshConfig, TrainConfig
from vr1_jax.training.checkpoint import CheckpointConfig
from vr1_jax.training.optimizer import OptimizerConfig

PROMPTS = 16
STEPS = 165_000 // PROMPTS


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="sft",
        model="Qwen2.5-VL-7B-Instruct",
        run="runs/sft_7b",
        steps=STEPS,
        data=dataclasses.replace(tgrpo_a100.DATA, records=("Video-R1-data/Video-R1-COT-165k.json",)),
        prompts_per_step=PROMPTS,
        microbatches=2,
        mesh=MeshConfig(fsdp=8),
        optimizer=OptimizerConfig(learning_rate=1e-6, total_steps=STEPS, weight_decay=0.0, clip_norm=5.0),
        checkpoint=CheckpointConfig(every=1000),
    )
