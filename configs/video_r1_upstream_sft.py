"""python scripts/train.py --config configs/video_r1_upstream_sft.py --model Qwen2.5-VL-7B-Instruct

The SFT cold start as the paper's published code ran it: an epoch of Video-R1-COT-165k, 8 sequences a step, the
loss on questions too, as the mean over sequences of their means. sft_a100.py says what it does otherwise and why.

Needs    8 x A100 80 GB; Qwen2.5-VL-7B-Instruct; Video-R1-COT-165k.json with its media.
"""

import dataclasses

import sft_a100

from vr1_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = sft_a100.get_config()
    return dataclasses.replace(
        config,
        run="runs/upstream_sft_7b",
        data=dataclasses.replace(config.data, prompt="upstream", spacing="constant", loss_on="upstream"),
        sft_aggregation="sequence",
        optimizer=dataclasses.replace(config.optimizer, decayed="upstream"),
    )
