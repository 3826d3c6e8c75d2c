"""Video-R1 in JAX: T-GRPO reinforcement learning for Qwen2.5-VL on a device mesh."""

from typing import Any

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # Late, because jax and orbax take seconds to import, and commands should answer `--help` at once.
    if name == "load_model":
        from vr1_jax.weights.loading import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
