"""How fast a step was: tokens a second, the share of the devices' peak that its update reached, and padding."""

from collections.abc import Mapping

import jax
import numpy as np

from vr1_jax.config import TrainConfig
from vr1_jax.models import flops
from vr1_jax.models.config import ModelConfig
from vr1_jax.training.metrics import Phases
from vr1_jax.training.targets import recognise
from vr1_jax.types import Prompt


def speed(
    config: TrainConfig,
    model: ModelConfig,
    prompt: Prompt,
    answers: tuple[int, int],
    tokens: float,
    phases: Phases,
) -> dict[str, float]:
    """Of a step that answered (or learned) `tokens` tokens, in padded shapes `answers`: G and C.

    Model FLOPs: what the update needs, padding counted and layers that are computed again not.
    """
    seconds = phases.seconds
    rates = {"tokens_per_second": tokens / sum(seconds.values())}
    if device := recognise(jax.devices()[0].device_kind):
        batch, slices, patches, _ = prompt.patches.shape
        work = flops.Workload(batch, slices, patches, prompt.tokens.shape[1], *answers)
        once = flops.update(model, work, trains_vision=not config.optimizer.freeze_vision)
        available = seconds["update"] * device.flops * jax.device_count()
        rates["update_mfu"] = once * config.epochs_per_batch / available
    return rates


def padding(prompt: Mapping[str, np.ndarray], answered: np.ndarray, slots: int) -> dict[str, float]:
    """Shares of a supervised batch that are computed for nothing; `slots` for each of the answers."""
    tokens = prompt["mask"].sum() + answered.sum()
    return {
        "padding_tokens": 1.0 - float(tokens) / (prompt["mask"].size + len(answered) * slots),
        "padding_patches": float((prompt["patch_windows"] < 0).mean()) if prompt["patch_windows"].size else 0.0,
    }
