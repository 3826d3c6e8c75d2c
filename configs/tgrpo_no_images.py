"""python scripts/train.py --config configs/tgrpo_no_images.py --model runs/sft_7b

The paper's ablation without image data: every step asks about videos. Needs what tgrpo_a100.py needs.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = tgrpo_a100.get_config()
    data = dataclasses.replace(config.data, image_share=0.0)
    return dataclasses.replace(config, run="runs/tgrpo_7b_no_images", data=data)
