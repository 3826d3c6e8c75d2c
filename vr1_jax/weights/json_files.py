"""The JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from vr1_jax.json_files import read_object
from vr1_jax.weights.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: does not exist") from None
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
