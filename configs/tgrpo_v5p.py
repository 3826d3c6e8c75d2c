"""python scripts/train.py --config configs/tgrpo_v5p.py --model runs/sft_7b

The paper's run on a TPU v5p-16 slice (8 chips of 95 GB): the same numbers as on eight A100.

Needs    8 TPU v5p chips, `pip install -e '.[tpu]'`; what tgrpo_a100.py needs besides. Not run by us on a TPU.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(tgrpo_a100.get_config(), run="runs/tgrpo_7b_v5p")
