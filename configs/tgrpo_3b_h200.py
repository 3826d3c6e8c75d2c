"""python scripts/train.py --config configs/tgrpo_3b_h200.py --model Qwen2.5-VL-3B-Instruct

T-GRPO of the 3B model on one GPU of 141 GB, with the paper's hyper-parameters.

Needs    1 x H200; Qwen2.5-VL-3B-Instruct or an SFT run of it; Video-R1-260k.json with its media.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import MeshConfig, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        tgrpo_a100.get_config(),
        model="Qwen2.5-VL-3B-Instruct",
        run="runs/tgrpo_3b",
        microbatches=8,
        mesh=MeshConfig(),
    )
