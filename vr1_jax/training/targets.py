"""Machines to plan for: how many devices, and what each holds and reaches. Never imports jax."""

import os
import re
from dataclasses import dataclass

from vr1_jax.errors import UsageError


@dataclass(frozen=True)
class Device:
    """One device as jax counts them, with the manufacturer's figures."""

    name: str
    memory: float  # bytes
    flops: float  # a second, of dense bf16 matrix products
    bandwidth: float  # bytes a second
    cores: int = 0  # TPUs: what the number in the name of a slice counts, for each device


DEVICES = {
    device.name: device
    for device in (
        Device("a100", 80e9, 312e12, 2.04e12),
        Device("a100-40", 40e9, 312e12, 1.56e12),
        Device("h100", 80e9, 989e12, 3.35e12),
        Device("h200", 141e9, 989e12, 4.8e12),
        Device("l40s", 48e9, 362e12, 0.86e12),
        Device("rtx4090", 24e9, 165e12, 1.01e12),
        Device("v4", 32e9, 275e12, 1.2e12, cores=2),
        Device("v5e", 16e9, 197e12, 0.82e12, cores=1),
        Device("v5p", 95e9, 459e12, 2.77e12, cores=2),
        Device("v6e", 32e9, 918e12, 1.64e12, cores=1),
    )
}


# How jax's device_kind names them; the first that is found in it.
_KINDS = (
    ("a100.*40gb", "a100-40"),
    ("a100", "a100"),
    ("h100", "h100"),
    ("h200", "h200"),
    ("l40s", "l40s"),
    ("rtx 4090", "rtx4090"),
    ("tpu v4", "v4"),
    ("tpu v5 ?(lite|e)", "v5e"),
    ("tpu v5", "v5p"),
    ("tpu v6", "v6e"),
)


def recognise(device_kind: str) -> Device | None:
    """The device that jax calls so, if it is in the table."""
    for pattern, name in _KINDS:
        if re.search(pattern, device_kind.lower()):
            return DEVICES[name]
    return None


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


def simulate(target: Target) -> None:
    """As many CPU devices as the target has. Must come before anything imports jax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    count = f"--xla_force_host_platform_device_count={target.count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
