"""Where a checkpoint keeps what. A converted model is a run that stopped at step 0.

ROOT/
  meta.json               format, dtype, where it came from, library versions
  hf/                     config.json, tokenizer and processor files: what export needs besides weights;
                          presentation.json, how a run puts records before the model
  checkpoints/STEP/       an Orbax checkpoint; `params/` is the model, a trainer adds others beside it
"""

import importlib.metadata
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vr1_jax.errors import UserError
from vr1_jax.files import read_json, write_json
from vr1_jax.models.config import ModelConfig
from vr1_jax.weights.hf_directory import parse_config, read_hf_config

FORMAT = 1
META, HF, STEPS = "meta.json", "hf", "checkpoints"
PARAMS = "params"  # the name of the model within a step

# Everything that travels besides weights. Never code: `auto_map` modules and pickles stay behind.
ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "presentation.json",  # how a run put its records before the model
    "LICENSE",
    "NOTICE",
    "Notice",
)


@dataclass(frozen=True)
class Checkpoint:
    root: Path
    step: int

    @property
    def directory(self) -> Path:
        return step_directory(self.root, self.step)

    @property
    def assets(self) -> Path:
        return self.root / HF

    @cached_property
    def hf_config(self) -> dict[str, Any]:
        return read_hf_config(self.assets)

    @property
    def config(self) -> ModelConfig:
        return parse_config(self.hf_config, self.assets)


def is_checkpoint(path: Path) -> bool:
    return (path / STEPS).is_dir() and (path / HF).is_dir()


def find_checkpoint(path: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of a run or converted directory: its latest step, unless told which."""
    if not is_checkpoint(path):
        raise UserError(f"{path}: not a checkpoint directory (no {HF}/ and {STEPS}/ in it)")
    if (path / META).is_file() and (found := read_json(path / META).get("format")) != FORMAT:
        raise UserError(f"{path / META}: format {found!r}; this version reads format {FORMAT}")
    available = steps(path)
    if not available:
        raise UserError(f"{path / STEPS}: no finished checkpoint")
    if step is not None and step not in available:
        raise UserError(f"{path}: no step {step}; there are {', '.join(map(str, available))}")
    return Checkpoint(path, available[-1] if step is None else step)


def steps(root: Path) -> list[int]:
    """Finished steps, ascending. Orbax gives a step its plain number only when all of it is written."""
    entries = (root / STEPS).iterdir()
    return sorted(int(entry.name) for entry in entries if entry.name.isdecimal() and (entry / PARAMS).is_dir())


def step_directory(root: Path, step: int) -> Path:
    return root / STEPS / str(step)


def assets_directory(model: Path) -> Path:
    """Where config and tokenizer of any `--model` directory are."""
    return model / HF if is_checkpoint(model) else model


def copy_assets(source: Path, target: Path) -> None:
    """Copy config, tokenizer and processor files; links are followed, as in a download cache."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ASSETS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_meta(root: Path, *, source: str, dtype: str) -> None:
    libraries = {name: importlib.metadata.version(name) for name in ("jax", "flax", "orbax-checkpoint")}
    write_json(root / META, {"format": FORMAT, "dtype": dtype, "source": source, "libraries": libraries})
