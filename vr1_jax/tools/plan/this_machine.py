"""The devices at hand, as something to plan for; and how to compile where they only stand for others."""

import os

import jax

from vr1_jax.training.targets import Device, Target, recognise

# Sizes do not need fast code. The CPU has no bf16 products: it keeps fp32 copies of all layers' weights outside
# of loops, which accelerators do not, unless it is told to leave everything in its loop.
ON_CPU = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}
if jax.__version_info__ < (0, 11):  # later compilers do not know it; here it saves two thirds of the time
    ON_CPU["xla_cpu_use_fusion_emitters"] = False


def this_machine() -> Target:
    devices = jax.devices()
    known = recognise(devices[0].device_kind)
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") or (known and known.memory)
    if not memory:  # CPU devices share the host's
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    figures = (known.flops, known.bandwidth) if known else (0.0, 0.0)
    return Target("here", Device(devices[0].device_kind, memory, *figures), len(devices))


def is_estimate() -> bool:
    return jax.devices()[0].platform == "cpu"
