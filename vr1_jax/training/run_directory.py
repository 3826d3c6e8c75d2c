"""The directory of a run: who runs it, what it began from, and where it ran.

RUN/
  lock              held, as long as it lives, by the process that runs it
  meta.json         what the run began from: a model directory, which of its checkpoints, how to know it again
  hf/               config, tokenizer, and how records are put before the model
  environment.json  settings, versions, code and hardware of the latest start, and of the earlier ones

`checkpoint`, `quarantine`, `rollouts` and `metrics` say what else there is.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vr1_jax.config import TrainConfig
from vr1_jax.config_files import to_json
from vr1_jax.data.prompts import FILE, Presentation, write_presentation
from vr1_jax.errors import UserError
from vr1_jax.files import lock, read_json, write_json
from vr1_jax.models.config import LoraConfig
from vr1_jax.weights.checkpoint_dir import (
    HF,
    META,
    PARAMS,
    assets_directory,
    copy_assets,
    find_checkpoint,
    is_checkpoint,
    write_meta,
)

LOCK, ENVIRONMENT = "lock", "environment.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "decord", "av")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES")  # besides JAX_...
_SAMPLE_BYTES = 2**16

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Only one process at a time gets past here; the kernel frees the lock however the holder ends."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+", encoding="utf-8") as file:
        try:
            if not lock(file):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(f"{run}: {holder} is running it; wait, or stop that one, or use another directory")
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that nobody else runs it", run, error.strerror)
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
        yield


def begin(run: Path, model: Path, presentation: Presentation, lora: LoraConfig | None = None) -> None:
    """Note what the run begins from, and copy what it needs of it; a run that goes on keeps what it has.

    `hf` comes last and under another name at first: where it is, all of this has been done.
    """
    if (run / HF).is_dir():
        if "origin" not in read_json(run / META):
            raise UserError(f"{run}: holds a model that no run made; name another directory")
        if not (run / HF / FILE).exists():  # an older version began it; these settings cannot have changed since
            write_presentation(run / HF, presentation)
        return
    step = find_checkpoint(model).step if is_checkpoint(model) else None
    write_meta(run, source=str(model), dtype="float32")
    origin = {"step": step, "fingerprint": _fingerprint(model, step)}
    adapters = {"lora": {"base": str(model.resolve()), **dataclasses.asdict(lora)}} if lora and lora.rank else {}
    write_json(run / META, read_json(run / META) | {"origin": origin} | adapters)
    aside = run / f"{HF}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    copy_assets(assets_directory(model), aside)
    write_presentation(aside, presentation)
    aside.rename(run / HF)


def origin_step(run: Path, model: Path) -> int | None:
    """Which checkpoint of `model` the run began from, if it is still what it was; None where it has no steps."""
    origin = read_json(run / META)["origin"]
    step, advice = origin["step"], "put it back, or start another run"
    try:
        found = _fingerprint(model, step)
    except UserError as error:
        raise UserError(f"model: what {run} began from is gone; {advice} ({error})") from error
    if found != origin["fingerprint"]:
        which = model if step is None else f"step {step} of {model}"
        raise UserError(f"model: {which} is not what it was when {run} began from it; {advice}")
    return step


def _fingerprint(model: Path, step: int | None) -> str:
    """Of the weights: names and sizes of their files, and the two ends of each."""
    if step is None:
        directory, files = model, model.glob("*.safetensors")
    else:
        directory = find_checkpoint(model, step).directory / PARAMS
        files = (path for path in directory.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory)} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def record_start(config: TrainConfig, mesh: Mesh, first_step: int) -> None:
    """Add this start to the run's environment: which hardware did which steps can be told from it."""
    path, earlier = Path(config.run) / ENVIRONMENT, []
    if path.exists():
        previous = read_json(path)
        earlier = [*previous.pop("earlier", []), previous]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    environment = {"first_step": first_step, "time": now, **describe(config), "mesh": dict(mesh.shape)}
    write_json(path, environment | {"earlier": earlier})


def describe(config: TrainConfig) -> dict[str, Any]:
    """What it takes to know a run again: settings, seed, versions, code, hardware."""
    device = jax.devices()[0]
    names = sorted(name for name in os.environ if name.startswith("JAX_") or name in _VARIABLES)
    return {
        "command": sys.argv,
        "config": to_json(config),
        "seed": config.seed,
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _PACKAGES},
        "commit": _commit(),
        "device": {
            "kind": device.device_kind,
            "count": jax.device_count(),
            "platform": device.platform,
            "runtime": device.client.platform_version,
        },
        "processes": jax.process_count(),
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        },
        "variables": {name: os.environ[name] for name in names},
    }


def _commit() -> str | None:
    """The checkout's commit, marked where files differ from it; None for an installed package."""
    here = Path(__file__).parent
    try:
        tracked = subprocess.run(
            ["git", "-C", here, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
        )
        described = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return described.stdout.strip() or None if tracked.returncode == 0 else None
