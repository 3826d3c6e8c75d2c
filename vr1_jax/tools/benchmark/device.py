"""The machine: what it is, what it reaches at best, and the least time that each phase can take on it."""

import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vr1_jax.models import flops
from vr1_jax.models.flops import Workload
from vr1_jax.tools.plan.programs import Outline

_IN_A_ROW = 5


@dataclass(frozen=True)
class Peaks:
    """Of all devices together, measured on the first: shares of a peak are shares of what was reached here."""

    flops: float  # a second, of one large matrix product in the compute dtype
    bytes: float  # a second, read and written by one large copy
    devices: int


@dataclass(frozen=True)
class Cost:
    """`flops` are the model's, without what is computed again to save memory."""

    flops: int
    bytes: int  # that must be read or written beside the matrix products' operands
    floor: float  # seconds


def describe() -> dict[str, Any]:
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in names}},
    }


def measure_peaks(dtype: str) -> Peaks:
    on_cpu = jax.devices()[0].platform == "cpu"
    side, count = (2048, 2**25) if on_cpu else (8192, 2**29)
    # Not all equal: that takes less power, and what is kept cool runs faster.
    square = (jax.random.normal(jax.random.key(0), (side, side)) * side**-0.5).astype(dtype)
    flops = 2 * side**3 / _fastest(jax.jit(jnp.matmul), square, square)
    del square
    line = jnp.ones(count, jnp.float32)
    moved = 2 * line.nbytes / _fastest(jax.jit(jnp.add), line, jnp.float32(1))
    return Peaks(flops * jax.device_count(), moved * jax.device_count(), jax.device_count())


def peak_memory() -> int:
    """Bytes: of the fullest device, or of this process where memory is the host's."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def costs(outline: Outline, peaks: Peaks) -> dict[str, Cost]:
    """By phase. `prompts` and `decode` are the parts of `rollout`."""
    model, work = outline.model, outline.workload(*outline.buckets[0])

    def compute(count: int, moved: int = 0) -> Cost:
        return Cost(count, moved, count / peaks.flops + moved / peaks.bytes)

    prompts, decode = compute(flops.rollout(model, replace(work, answer=1))), _decode(outline, work, peaks)
    return {
        "prompts": prompts,
        "decode": decode,
        "rollout": Cost(prompts.flops + decode.flops, decode.bytes, prompts.floor + decode.floor),
        "reference": compute(flops.reference(model, work)),
        "update": compute(flops.update(model, work), flops.optimizer_bytes(model)),
    }


def _decode(outline: Outline, work: Workload, peaks: Peaks) -> Cost:
    """Every token takes the longer of its arithmetic and its reading; each copy of the weights is read."""
    model, width = outline.model, jnp.dtype(outline.config.compute_dtype).itemsize
    copies = max(peaks.devices // outline.config.mesh.rollout_tensor, 1)
    share = replace(work, prompts=-(-work.prompts // copies))
    written = range(1, work.answer)
    count = np.array([flops.decode(model, work, slots) for slots in written], float)
    reads = [flops.decode_bytes(model, share, slots, bytes_per_value=width) for slots in written]
    moved = copies * np.array(reads, float)
    floor = np.maximum(count / peaks.flops, moved / peaks.bytes).sum()
    return Cost(int(count.sum()), int(moved.sum()), float(floor))


def _fastest(f: Callable[..., jax.Array], x: jax.Array, other: jax.Array, repeats: int = 4) -> float:
    """Seconds of one of several in a row, each of the one before: starting them hardly counts."""
    jax.block_until_ready(f(x, other))
    seconds = []
    for _ in range(repeats):
        start, last = time.perf_counter(), x
        for _ in range(_IN_A_ROW):
            last = f(last, other)
        jax.block_until_ready(last)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / _IN_A_ROW


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except FileNotFoundError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
