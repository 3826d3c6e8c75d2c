"""python scripts/train.py --config configs/tgrpo_zero.py --model Qwen2.5-VL-7B-Instruct

The paper's "zero" ablation: reinforcement learning from the published model, without the SFT cold start.
Needs what tgrpo_a100.py needs, less the SFT run.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(tgrpo_a100.get_config(), model="Qwen2.5-VL-7B-Instruct", run="runs/tgrpo_7b_zero")
