"""python scripts/train.py --config configs/tgrpo_7b_lora_48gb.py --model Qwen2.5-VL-7B-Instruct

T-GRPO of the 7B model on one GPU of 48 GB: adapters of rank 32 beside frozen bf16 weights, which are also the
reference and what samples.

Needs    1 x L40S (or A40, RTX 6000 Ada); Qwen2.5-VL-7B-Instruct or an SFT run of it; Video-R1-260k.json with its
         media.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import LoraConfig, MeshConfig, TrainConfig


def get_config() -> TrainConfig:
    config = tgrpo_a100.get_config()
    return dataclasses.replace(
        config,
        model="Qwen2.5-VL-7B-Instruct",
        run="runs/tgrpo_7b_lora",
        microbatches=8,
        mesh=MeshConfig(),
        lora=LoraConfig(rank=32, alpha=64.0),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-5, weight_decay=0.0),
    )
