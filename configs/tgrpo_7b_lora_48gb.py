"""python scripts/train.py --config configs/tgrpo_7b_lora_48gb.py --model Qwen2.5-VL-7B-Instruct

T-GRPO of the 7B model on one GPU of 48 GB, as tgrpo_3b_lora_24gb.py does it for the 3B model on 24 GB.

Needs    1 x L40S (or A40, RTX 6000 Ada); Qwen2.5-VL-7B-Instruct or an SFT run of it; Video-R1-260k.json with its
         media.
"""

import dataclasses

import tgrpo_3b_lora_24gb

from vr1_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        tgrpo_3b_lora_24gb.get_config(), model="Qwen2.5-VL-7B-Instruct", run="runs/tgrpo_7b_lora"
    )
