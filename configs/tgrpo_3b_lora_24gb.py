"""python scripts/train.py --config configs/tgrpo_3b_lora_24gb.py --model Qwen2.5-VL-3B-Instruct

T-GRPO of the 3B model on one GPU of 24 GB: adapters of rank 32 beside frozen bf16 weights, which are also the
reference and what samples.

Needs    1 x RTX 4090 (or L4, A10G, 3090); Qwen2.5-VL-3B-Instruct or an SFT run of it; Video-R1-260k.json with its
         media.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import LoraConfig, MeshConfig, TrainConfig


def get_config() -> TrainConfig:
    config = tgrpo_a100.get_config()
    return dataclasses.replace(
        config,
        model="Qwen2.5-VL-3B-Instruct",
        run="runs/tgrpo_3b_lora",
        microbatches=8,
        mesh=MeshConfig(),
        lora=LoraConfig(rank=32, alpha=64.0),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-5, weight_decay=0.0),
    )
