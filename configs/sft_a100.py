"""python scripts/train.py --config configs/sft_a100.py --model Qwen2.5-VL-7B-Instruct

The SFT cold start: one epoch of Video-R1-COT-165k, 8 answers a step, the rate falling to 0 in a line.

Needs    8 x A100 80 GB; Qwen2.5-VL-7B-Instruct; Video-R1-COT-165k.json with its media.
Expect   the loss to fall quickly while the model learns the form of an answer, then slowly.

Where it is not what the paper's code did (configs/video_r1_upstream_sft.py is, docs/upstream.md compares):
    loss on the answers          the code counted question and video placeholders too: nothing worth learning
    a mean over tokens           every token of a step counts the same, whatever the length of its answer
    measured spacing of frames   as in tgrpo_a100.py
    tgrpo_a100.py's prompt       the model is asked in the words that reinforcement learning will use
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import CheckpointConfig, MeshConfig, OptimizerConfig, TrainConfig

STEPS = 20_697  # one epoch: 165,575 records


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="sft",
        model="Qwen2.5-VL-7B-Instruct",
        run="runs/sft_7b",
        steps=STEPS,
        data=dataclasses.replace(tgrpo_a100.DATA, records=("Video-R1-data/Video-R1-COT-165k.json",)),
        prompts_per_step=8,
        mesh=MeshConfig(fsdp=8),
        optimizer=OptimizerConfig(
            learning_rate=1e-6, schedule="linear", total_steps=STEPS, weight_decay=0.0, clip_norm=5.0
        ),
        checkpoint=CheckpointConfig(every=1000),
    )
