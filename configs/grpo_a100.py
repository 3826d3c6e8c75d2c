"""python scripts/train.py --config configs/grpo_a100.py --model runs/sft_7b

The same run without shuffled frames: plain GRPO, the paper's baseline. Needs what tgrpo_a100.py needs.
Expect no temporal metrics, and a step that is hardly shorter: decoding reads the same weights for fewer answers.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = tgrpo_a100.get_config()
    rollout = dataclasses.replace(config.rollout, shuffled_group=0)
    grpo = dataclasses.replace(config.grpo, alpha=0.0)
    return dataclasses.replace(config, run="runs/grpo_7b", rollout=rollout, grpo=grpo)
