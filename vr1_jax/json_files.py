"""JSON objects from files that others wrote: bounded in size and depth, so that reading one always ends."""

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 2**20  # a published tokenizer.json has 7 to 34 MB
# What goes through a file's content recursively, here and in other packages, must not run out of stack.
MOST_LEVELS = 64


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file; a ValueError says in one line what else is there."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path}: {size / 1e6:.0f} MB; a JSON file of a model has at most {MOST_BYTES / 1e6:.0f}")
    try:
        content = json.loads(path.read_bytes().decode())
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if _is_deeper(content, MOST_LEVELS):
        raise ValueError(f"{path}: nested deeper than {MOST_LEVELS} levels")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _is_deeper(content: Any, levels: int) -> bool:
    level = [content]
    for _ in range(levels):
        containers = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in containers for child in (node.values() if isinstance(node, dict) else node)]
    return any(isinstance(node, dict | list) for node in level)
