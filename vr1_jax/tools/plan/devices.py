"""Machines to plan for, by name or as found here: how many devices, and what each holds and reaches."""

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

import jax

from vr1_jax.errors import UsageError
from vr1_jax.training.metrics import PEAK_FLOPS, device_name


class Gpu(NamedTuple):
    """What the compiler asks about a GPU."""

    capability: tuple[int, int]
    cores: int
    cache: int  # MiB of L2
    shared: int  # bytes of shared memory in each core


_A100, _HOPPER = Gpu((8, 0), 108, 40, 167936), Gpu((9, 0), 132, 50, 233472)


@dataclass(frozen=True)
class Device:
    """One device as jax counts them, with the manufacturer's figures."""

    name: str
    memory: float  # bytes
    flops: float  # a second, of dense bf16 matrix products
    bandwidth: float  # bytes a second
    cores: int = 0  # TPUs: what the number in the name of a slice counts, for each device
    gpu: Gpu | None = None


DEVICES = {
    device.name: device
    for device in (
        Device("a100", 80e9, PEAK_FLOPS["a100"], 2.04e12, gpu=_A100),
        Device("a100-40", 40e9, PEAK_FLOPS["a100"], 1.56e12, gpu=_A100),
        Device("h100", 80e9, PEAK_FLOPS["h100"], 3.35e12, gpu=_HOPPER),
        Device("h200", 141e9, PEAK_FLOPS["h200"], 4.8e12, gpu=_HOPPER),
        Device("b200", 180e9, PEAK_FLOPS["b200"], 8.0e12, gpu=Gpu((10, 0), 148, 126, 233472)),
        Device("l40s", 48e9, PEAK_FLOPS["l40s"], 0.86e12, gpu=Gpu((8, 9), 142, 96, 102400)),
        Device("rtx4090", 24e9, PEAK_FLOPS["rtx4090"], 1.01e12, gpu=Gpu((8, 9), 128, 72, 102400)),
        Device("rtx5090", 32e9, PEAK_FLOPS["rtx5090"], 1.79e12, gpu=Gpu((12, 0), 170, 96, 102400)),
        Device("v4", 32e9, PEAK_FLOPS["v4"], 1.2e12, cores=2),
        Device("v5e", 16e9, PEAK_FLOPS["v5e"], 0.82e12, cores=1),
        Device("v5p", 95e9, PEAK_FLOPS["v5p"], 2.77e12, cores=2),
        Device("v6e", 32e9, PEAK_FLOPS["v6e"], 1.64e12, cores=1),
    )
}


def recognise(device_kind: str) -> Device | None:
    """The device that jax calls so, if it is in the table."""
    name = device_name(device_kind)
    if name == "a100" and "40gb" in device_kind.lower():
        name = "a100-40"
    return DEVICES.get(name)


@dataclass(frozen=True)
class Target:
    name: str
    device: Device
    count: int


def find_target(name: str) -> Target:
    """`a100x8` is eight GPUs, `h200` one; `v5p-16` a TPU slice by its product name: 16 cores, so 8 chips."""
    parts = re.fullmatch(r"(.+)([x-])(\d+)", name)
    kind, mark, number = parts.groups() if parts and name not in DEVICES else (name, "x", "1")
    device = DEVICES.get(kind)
    if device is None or (mark == "-") != (device.cores > 0):
        examples = ", ".join(f"{d.name}-8" if d.cores else f"{d.name}x8" for d in DEVICES.values())
        raise UsageError(f"--target {name}: not in the table; use here, or one like {examples}")
    count, left = divmod(int(number), device.cores or 1)
    if left:
        raise UsageError(f"--target {name}: the number counts cores, {device.cores} for each chip of {kind}")
    if not count:
        raise UsageError(f"--target {name}: no devices")
    return Target(name, device, count)


def this_machine() -> Target:
    devices = jax.devices()
    known = recognise(devices[0].device_kind)
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") or (known and known.memory)
    if not memory:  # CPU devices share the host's
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    figures = (known.flops, known.bandwidth) if known else (0.0, 0.0)
    return Target("here", Device(devices[0].device_kind, memory, *figures), len(devices))
