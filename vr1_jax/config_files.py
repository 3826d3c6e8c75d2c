"""Configs of any kind as Python files with `get_config()`, and as the command line changes them."""

import dataclasses
import importlib.util
import json
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, TypeVar

from vr1_jax.arguments import parse
from vr1_jax.errors import UsageError, UserError

Kind = TypeVar("Kind")


def parse_config(kind: type[Kind], path: str | Path | None, overrides: Sequence[str], **settings: Any) -> Kind:
    """The config of a file, or without one its defaults, with overrides; `settings` are tyro's."""
    default = {} if path is None else {"default": read_config(Path(path), kind)}
    return parse(kind, overrides, **default, **settings)


def read_config(path: Path, kind: type[Kind]) -> Kind:
    """What the file's get_config() returns."""
    if not path.is_file():
        raise UsageError(f"--config {path}: {'not a file' if path.exists() else 'no such file'}")
    spec = importlib.util.spec_from_loader(
        f"config_{path.stem}", SourceFileLoader(f"config_{path.stem}", str(path))
    )
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # a config may import and change its neighbour
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "get_config", None)
        config = make() if make else None
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, UnicodeDecodeError) as error:
        line = _line_in(path, error)
        raise UsageError(f"--config {path}{line}: {type(error).__name__}: {error}") from error
    except ValueError as error:  # what a part of the config refuses by its own check
        raise UsageError(f"--config {path}{_line_in(path, error)}: {error}") from error
    finally:
        sys.path.pop(0)
    if make is None:
        raise UsageError(f"--config {path}: no get_config() in it")
    if not isinstance(config, kind):
        raise UsageError(f"--config {path}: get_config() returns {type(config).__name__}, not {kind.__name__}")
    return config


def _line_in(path: Path, error: Exception) -> str:
    """Where in a config file something went wrong, as far as can be told."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == path.name]
    number = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return "" if number is None else f" line {number}"


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain JSON; functions by their names."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda f: getattr(f, "__name__", str(f))))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}: a setting that differs is then named by itself."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def check_config(saved: dict[str, Any], current: dict[str, Any], harmless: Collection[str], *, run: Path) -> None:
    """Refuse to go on with a run under another config; `harmless` names fields, or groups, that may differ."""
    old, new = flat(saved), flat(json.loads(json.dumps(current)))
    differing = [
        f"{name} {_shown(old, name)} -> {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if not any(f"{name}.".startswith(f"{field}.") for field in harmless)
        and _shown(old, name, None) != _shown(new, name, None)
    ]
    if differing:
        raise UserError(
            f"{run}: its checkpoints were made with another config ({'; '.join(differing)}); "
            "set these back, or use another run directory"
        )


def _shown(fields: dict[str, Any], name: str, limit: int | None = 60) -> str:
    text = json.dumps(fields[name], ensure_ascii=False) if name in fields else "(absent)"
    return text if limit is None or len(text) <= limit else f"{text[:limit]}..."
