"""Float32 that is float32: accelerators multiply its factors in 10 or 7 bits unless told not to."""

import contextlib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def computing_in(dtype: DTypeLike) -> contextlib.AbstractContextManager:
    """Around everything that is traced for arithmetic in this dtype."""
    if jnp.dtype(dtype) == jnp.float32:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()
