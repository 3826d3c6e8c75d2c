"""python scripts/train.py --config configs/tgrpo_3b_h200.py --model Qwen2.5-VL-3B-Instruct

T-GRPO of the 3B model on one GPU of 141 GB, with the paper's hyper-parameters.

Needs    1 x H200; Qwen2.5-VL-3B-Instruct or an SFT run of it; Video-R1-260k.json with its media.

Smaller machines, by scripts/plan.py (the CPU's estimates; with `--optimizer.freeze-vision` all of them):
    1 x A100 80 GB    --optimizer.moments int8
    2 x L40S          --optimizer.moments factored --microbatches 4    35 GB on each
    4 x RTX 4090      --optimizer.moments factored --microbatches 2    22 GB on each, hardly any to spare, and only
                                                                       without the bucket of very wide frames
One GPU of 24 GB: configs/tgrpo_3b_lora_24gb.py.
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
