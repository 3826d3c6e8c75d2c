"""python scripts/train.py --config configs/video_r1_upstream.py --model runs/upstream_sft_7b

T-GRPO as the paper's published code ran it, setting by setting, quirks included: to reproduce and to compare.
tgrpo_a100.py says what it does otherwise and why; docs/upstream.md has the whole table.

Needs    8 x A100 80 GB (a pair of them shares a prompt; 4 with `--mesh.tensor 1 --mesh.rollout-tensor 1`); the SFT
         run of configs/video_r1_upstream_sft.py; Video-R1-260k.json with its media.

Two things stay different: the code sampled with measured and scored with constant spacing of frames, here both are
constant; and it drew images and videos into one step, here a step has one kind.
"""

import dataclasses

import tgrpo_a100

from vr1_jax.config import MeshConfig, OptimizerConfig, RolloutConfig, TrainConfig
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.sampling.settings import SamplingConfig

EPOCH = 65_768  # steps of 4 prompts on 263,071 records; the code's run was stopped after 1000


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="rl",
        model="runs/upstream_sft_7b",
        run="runs/upstream_7b",
        steps=1000,
        data=dataclasses.replace(tgrpo_a100.DATA, prompt="upstream", spacing="constant"),
        prompts_per_step=4,
        mesh=MeshConfig(tensor=2, rollout_tensor=2),
        rollout=RolloutConfig(
            group=8,
            shuffled_group=4,
            sampling=SamplingConfig(max_new_tokens=768, temperature=1.0, top_p=0.95, top_k=50),
        ),
        grpo=GRPOConfig.upstream(),
        optimizer=OptimizerConfig(
            learning_rate=1e-6,
            schedule="cosine",
            total_steps=EPOCH,
            weight_decay=0.01,
            decayed="upstream",
            clip_norm=5.0,
        ),
    )
