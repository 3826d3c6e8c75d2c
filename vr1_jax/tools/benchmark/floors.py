"""The least that each phase can take on a device, by its FLOPs and bytes over what the device reaches."""

from dataclasses import dataclass, replace

import numpy as np

from vr1_jax.models import flops
from vr1_jax.tools.benchmark.device import Peaks
from vr1_jax.tools.benchmark.sizes import Setting

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Cost:
    """`flops` are the model's, without what is computed again to save memory."""

    flops: int
    bytes: int  # that must be read or written beside the matrix products' operands
    floor: float  # seconds


def costs(setting: Setting, peaks: Peaks) -> dict[str, Cost]:
    model, work = setting.model, setting.work
    read, decode = _prompts(setting, peaks), _decode(setting, peaks)
    update = _compute(flops.update(model, work), peaks, flops.optimizer_bytes(model))
    return {
        "prompts": read,
        "decode": decode,
        "rollout": Cost(read.flops + decode.flops, decode.bytes, read.floor + decode.floor),
        "reference": _compute(flops.reference(model, work), peaks),
        "update": update,
        "sft": _compute(flops.sft(model, work), peaks, flops.optimizer_bytes(model)),
    }


def _compute(count: int, peaks: Peaks, moved: int = 0) -> Cost:
    return Cost(count, moved, count / peaks.flops + moved / peaks.bytes)


def _prompts(setting: Setting, peaks: Peaks) -> Cost:
    return _compute(flops.rollout(setting.model, replace(setting.work, answer=1)), peaks)


def _decode(setting: Setting, peaks: Peaks) -> Cost:
    """Every token takes the longer of its arithmetic and its reading; each copy of the weights is read."""
    model, work = setting.model, setting.work
    copies = max(peaks.devices // setting.rollout_tensor, 1)
    share = replace(work, prompts=-(-work.prompts // copies))
    written = range(1, work.answer)
    count = np.array([flops.decode(model, work, slots) for slots in written], float)
    width = _BYTES[setting.dtype]
    moved = copies * np.array(
        [flops.decode_bytes(model, share, slots, bytes_per_value=width) for slots in written], float
    )
    floor = np.maximum(count / peaks.flops, moved / peaks.bytes).sum()
    return Cost(int(count.sum()), int(moved.sum()), float(floor))
