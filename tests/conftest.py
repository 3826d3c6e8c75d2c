"""Shared fixtures. Eight simulated CPU devices, set before jax starts. Which tests `make quick` runs."""

import gc
import os
import tempfile
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Models here are tiny: time goes into compiling, of which the compiler's own optimisations are a third.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["HF_HUB_OFFLINE"] = "1"
# What is compiled is found again by other tests and the commands they run, for one session.
COMPILED = tempfile.TemporaryDirectory(prefix="vr1_jax_compiled")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402
import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]

# Files whose tests took more than SLOW seconds of CPU time when `make measure` last measured them. A file
# enters the list above SLOW seconds and leaves it below half of that; one that is not measured yet is quick.
SLOW_FILES = REPOSITORY / "tests/slow_files.txt"
SLOW = 4
SECONDS = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help=f"leave out the files listed in {SLOW_FILES.name}")
    parser.addoption(
        "--measure", action="store_true", help=f"measure what runs, and bring {SLOW_FILES.name} up to date"
    )


def pytest_configure(config):
    config.stash[SECONDS] = Counter()


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--quick") and collection_path.suffix == ".py" and _name(collection_path) in _slow_files():
        return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        item.config.stash[SECONDS][_name(item.path)] += sum(os.times()[:4]) - before


def pytest_sessionfinish(session):
    if session.config.getoption("--measure"):
        slow, seconds = _slow_files(), session.config.stash[SECONDS]
        slow |= {name for name, its in seconds.items() if its > SLOW}
        slow -= {name for name, its in seconds.items() if its < SLOW / 2}
        names = sorted(name for name in slow if (REPOSITORY / name).is_file())
        SLOW_FILES.write_text("".join(f"{name}\n" for name in names))


def _slow_files() -> set[str]:
    return set(SLOW_FILES.read_text().split())


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


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
