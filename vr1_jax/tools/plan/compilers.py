"""Compilers of machines that are not here: for CUDA and TPU ahead of time, else the CPU's as a stand-in.

`pip install -e '.[plan]'` brings the two; they need no driver and no device. Without cuDNN and without trying
kernels out they choose other kernels than on the machine itself; memory, copies and traffic are the machine's.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies

from vr1_jax.errors import UsageError
from vr1_jax.tools.plan.devices import Device, Target

_PACKAGES = {"cuda": "jax_cuda12_plugin", "tpu": "libtpu"}

# Sizes do not need fast code. The CPU has no bf16 products: it keeps fp32 copies of all layers' weights outside of
# loops, which accelerators do not, unless it is told to leave everything in its loop.
_STAND_IN = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}
if jax.__version_info__ < (0, 11):  # later compilers do not know it; here it saves two thirds of the time
    _STAND_IN["xla_cpu_use_fusion_emitters"] = False

# Chips by their count: (x, y) or (x, y, z).
_SLICES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}


def choose_compiler(target: Target, wanted: str | None) -> str:
    """`wanted`, or the target's own where it is installed."""
    own = "cuda" if target.device.gpu else "tpu" if target.device.cores else "cpu"
    if wanted is None:
        return own if own == "cpu" or importlib.util.find_spec(_PACKAGES[own]) else "cpu"
    if wanted not in ("cpu", own):
        raise UsageError(f"--compiler {wanted}: {target.name} is compiled for by {own}, or estimated by cpu")
    if wanted != "cpu" and not importlib.util.find_spec(_PACKAGES[wanted]):
        raise UsageError(f"--compiler {wanted} needs {_PACKAGES[wanted]}: pip install -e '.[plan]'")
    return wanted


def absent_devices(target: Target, compiler: str) -> list[jax.Device]:
    """The target's devices as this compiler sees them. Must come before jax looks for devices."""
    jax.config.update("jax_platforms", "cpu")
    if compiler == "cpu":
        count = f"--xla_force_host_platform_device_count={target.count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
        return jax.devices()
    if compiler == "cuda":
        described = {"target_config": _describe(target.device), "topology": f"1x1x{target.count}"}
        return list(topologies.get_topology_desc(platform="cuda", **described).devices)
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # no TPU host, no lock on one
    cubes = target.device.name in ("v4", "v5p")
    shape = (_CUBES if cubes else _SLICES).get(target.count)
    if shape is None:
        raise UsageError(f"--target {target.name}: no slice of {target.count} chips is known to --compiler tpu")
    return list(topologies.get_topology_desc(f"{target.device.name}:{shape}", platform="tpu").devices)


def compile_for(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    return lowered.compile(compiler_options=_STAND_IN if platform == "cpu" else None)


def _describe(device: Device) -> str:
    """A device as XLA's GpuTargetConfig. Beyond what `Gpu` has the same for all that it matters for."""
    gpu = device.gpu
    return f"""
        platform_name: "CUDA"
        device_description_str: "{device.name}"
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
          core_count: {gpu.cores}
          fpus_per_core: {64 if gpu.capability == (8, 0) else 128}
          clock_rate_ghz: 1.5
          device_memory_size: {int(device.memory)}
          memory_bandwidth: {int(device.bandwidth)}
          l2_cache_size: {gpu.cache * 2**20}
          shared_memory_per_core: {gpu.shared}
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: {gpu.shared - 1024}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          threads_per_core_limit: {2048 if gpu.shared > 102400 else 1536}
          threads_per_block_limit: 1024
          threads_per_warp: 32
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }}
    """
