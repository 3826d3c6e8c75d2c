"""Names of step directories: only what has a plain number is a checkpoint."""

import logging
import shutil
from pathlib import Path

_SAVING, _REMOVED, _DAMAGED = ".saving", ".removed", ".damaged"

logger = logging.getLogger(__name__)


def numbered(steps: Path) -> list[int]:
    """Checkpoints, ascending; `checkpoint_dir.steps` leaves out those that lost their parameters."""
    return sorted(int(entry.name) for entry in steps.iterdir() if entry.name.isdecimal() and entry.is_dir())


def aside(directory: Path) -> Path:
    """Where a step is written; Orbax appends a suffix of its own until it has finished its part."""
    return directory.with_suffix(_SAVING)


def set_aside(directory: Path) -> None:
    """Out of the way of the step's next save; a person may want to look at it."""
    target = directory.with_suffix(_DAMAGED)
    shutil.rmtree(target, ignore_errors=True)
    directory.rename(target)
    logger.warning("kept as %s; delete it when it is of no use", target)


def remove(directory: Path) -> None:
    """Under another name first, so that a kill leaves no half of it under its number."""
    shutil.rmtree(directory.rename(directory.with_suffix(_REMOVED)))


def clear_leftovers(steps: Path) -> None:
    """What killed or failed saves left. Whatever resists, being written to still, goes the next time."""
    for entry in steps.iterdir():
        number, _, rest = entry.name.partition(".")
        if number.isdecimal() and f".{rest}".startswith((_SAVING, _REMOVED)):
            shutil.rmtree(entry, ignore_errors=True)
