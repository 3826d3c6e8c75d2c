"""The scripts as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]


def load_command(path: str) -> ModuleType:
    """The module of a script: load_command("scripts/train.py")."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where tyro looks for the source of the arguments, for their comments
    spec.loader.exec_module(module)
    return module
