"""python scripts/shortcut_study.py        (which writes the world and the SFT model that this config begins with)

Does T-GRPO make a model look at the order of frames when something easier is there?

The demo's world with a static shortcut: every video that needs order is framed in a colour that stands for an
answer. In SFT it is always the right one, so that the model learns to follow the colour. In RL it is right three
times out of four: who follows it earns 0.75 without looking further, whatever the order of frames, and nothing
where the colour lies. The arms differ in the algorithm only and start from the same SFT model.

Expect   some 3 minutes for each arm and seed on two CPU cores.
"""

import dataclasses

import demo

from vr1_jax.config import TrainConfig
from vr1_jax.rl.advantages import GRPOConfig

WORLD = dataclasses.replace(demo.WORLD, static_shortcut=0.75)

# What each arm does with the temporal bonus.
ARMS: dict[str, GRPOConfig] = {
    "grpo": dataclasses.replace(GRPOConfig.paper(), alpha=0.0),
    "reward": GRPOConfig.paper(),
    "reward, not divided by std": dataclasses.replace(GRPOConfig.paper(), normalize_std=False),
    "advantage": GRPOConfig.fixed(),
}


HELDOUT = (f"{demo.RUNS}/world/heldout.json", f"{demo.RUNS}/world/misleading.json")
SFT_STEPS = 150  # it reads and counts where the colour helps; later it would also read well where the colour lies


def get_sft_config() -> TrainConfig:
    """Of the training records those whose colour is right, which scripts/shortcut_study.py picks."""
    config = demo.get_sft_config()
    data = dataclasses.replace(config.data, records=(f"{demo.RUNS}/world/cue_is_right.json",), heldout=HELDOUT)
    return dataclasses.replace(config, steps=SFT_STEPS, data=data)


def get_config(arm: str = "reward") -> TrainConfig:
    """`arm` is a key of ARMS. All arms sample shuffled frames, so that all can be measured on them."""
    config = demo.get_config()
    data = dataclasses.replace(config.data, heldout=HELDOUT)
    grpo = dataclasses.replace(ARMS[arm], length_bonus=0.0, beta=config.grpo.beta)
    watch = dataclasses.replace(config.watch, evaluate_every=config.steps, rollouts=False)
    run = f"{demo.RUNS}/{arm.replace(', ', '_').replace(' ', '_')}"
    return dataclasses.replace(config, run=run, data=data, grpo=grpo, watch=watch)
