"""Write docs/configuration.md: every field of a training config with its type, default and meaning.

python scripts/config_reference.py
"""

import dataclasses
import inspect
import re
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vr1_jax.config import TrainConfig
from vr1_jax.data.collate import Bucket

PAGE = Path(__file__).resolve().parents[1] / "docs/configuration.md"
HEAD = """# Configuration

Every field of a training config (`vr1_jax/config.py`), written by `python scripts/config_reference.py`.

A config is a Python file with a function `get_config()` that returns a `TrainConfig`. The command line overrides
single fields by their names: `python scripts/train.py --config configs/demo.py --steps 50 --grpo.beta 0.02`.
Several values follow each other (`--data.records a.json b.json`, `--data.source-weights CLEVR 0.5`); a boolean is
`--watch.tensorboard` or `--watch.no-tensorboard`; nothing is `None`. Dashes and underscores in names are the same.
"""


def make_page() -> str:
    return "\n".join([HEAD, *describe(TrainConfig, "The run", ""), *describe(Bucket, "A bucket", "")])


def describe(kind: type, title: str, prefix: str) -> list[str]:
    """A heading and a table, then those of the dataclasses among the fields."""
    hints, meanings, inner = get_type_hints(kind), read_comments(kind), []
    lines = [
        f"## {title}\n",
        f"{inspect.getdoc(kind)}\n",
        "| field | type | default | meaning |",
        "| - | - | - | - |",
    ]
    for field in dataclasses.fields(kind):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner += describe(hint, f"`{name}`", f"{name}.")
        else:
            cells = (f"`{name}`", name_type(hint), name_default(field), meanings[field.name])
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return [*lines, "", *inner]


def name_type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if NoneType in get_args(hint):
        return " or ".join(name_type(part) for part in get_args(hint))
    return "None" if hint is NoneType else re.sub(r"\w+\.(?=\w)", "", inspect.formatannotation(hint))


def name_default(field: dataclasses.Field) -> str:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        return "required"
    return "none" if default in ((), {}) else f"`{default}`"


def read_comments(kind: type) -> dict[str, str]:
    """What stands beside each field, or above it."""
    found, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        code, _, comment = line.strip().partition("# ")
        if match := re.match(r"(\w+):", code):
            found[match[1]] = " ".join(filter(None, [*above, comment]))
        above = [*above, comment] if not code else []
    return found


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
    print(PAGE)
