"""Shared fixtures. Eight simulated CPU devices, set before jax starts."""

import gc
import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

# The commands keep what they compile; here for one session, and not among the user's files.
COMPILED = tempfile.TemporaryDirectory(prefix="vr1_jax_compiled")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name

REPOSITORY = Path(__file__).resolve().parents[1]


# Each compiled program holds memory maps, of which Linux grants a process 65,530: then the compiler crashes.
MOST_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def _programs_that_are_let_go():
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published tokenizers, records and videos beside the checkout, where a developer has them."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no published sample data at {path}")
    return path
