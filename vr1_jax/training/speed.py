"""How fast a step was: tokens a second, the share of the devices' peak that its update reached, and padding."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from vr1_jax.config import TrainConfig
from vr1_jax.models import flops
from vr1_jax.models.config import ModelConfig
from vr1_jax.training.metrics import Phases
from vr1_jax.types import Prompt

# Dense bf16 FLOPs a second of one device, as its manufacturer says.
PEAK_FLOPS = {
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "l40s": 362e12,
    "rtx4090": 165e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
}
# How jax's device_kind names TPUs and GPUs; the first that is found in it.
_KINDS = {
    **{"a100": "a100", "h100": "h100", "h200": "h200", "l40s": "l40s", "rtx 4090": "rtx4090"},
    **{"tpu v4": "v4", "tpu v5 ?(lite|e)": "v5e", "tpu v5": "v5p", "tpu v6": "v6e"},
}


def device_name(device_kind: str) -> str | None:
    """The device's name in PEAK_FLOPS, if it is there: "NVIDIA A100-SXM4-80GB" is an a100."""
    return next((name for pattern, name in _KINDS.items() if re.search(pattern, device_kind.lower())), None)


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
    if device := device_name(jax.devices()[0].device_kind):
        batch, slices, patches, _ = prompt.patches.shape
        work = flops.Workload(batch, slices, patches, prompt.tokens.shape[1], *answers)
        once = flops.update(model, work, trains_vision=not config.optimizer.freeze_vision)
        available = seconds["update"] * PEAK_FLOPS[device] * jax.device_count()
        rates["update_mfu"] = once * config.epochs_per_batch / available
    return rates


def padding(prompt: Mapping[str, np.ndarray], answered: np.ndarray, slots: int) -> dict[str, float]:
    """Shares of a supervised batch that are computed for nothing; `slots` for each of the answers."""
    tokens = prompt["mask"].sum() + answered.sum()
    return {
        "padding_tokens": 1.0 - float(tokens) / (prompt["mask"].size + len(answered) * slots),
        "padding_patches": float((prompt["patch_windows"] < 0).mean()) if prompt["patch_windows"].size else 0.0,
    }
