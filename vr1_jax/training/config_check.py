"""Whether a run may go on: the config it was started with against the one it is given now."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vr1_jax.config_files import flat
from vr1_jax.errors import UserError


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
