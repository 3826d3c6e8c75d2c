"""SFT up to a level, not for a number of steps: from a start that differs, T-GRPO would learn different things."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vr1_jax.config import TrainConfig
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics


def cold_start(config: TrainConfig, stops: Sequence[int], heldout_loss: float) -> bool:
    """Stop at the first of `stops` with a small enough held-out loss, else at the end. False if interrupted."""
    for steps in (*stops, config.steps):
        if int(train(dataclasses.replace(config, steps=steps)).step) < steps:
            return False
        if read_metrics(Path(config.run))[-1]["heldout_loss"] < heldout_loss:
            break
    return True
