"""The package without jaxtyping, whose annotations only tests check: a benchmark should not need it."""

import importlib.util
import sys
from types import ModuleType


class _AnyArray:
    def __class_getitem__(cls, _):
        return cls


class _Annotations(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyArray


def do_without_jaxtyping() -> None:
    """Call before the first import of a module with annotated arrays."""
    if importlib.util.find_spec("jaxtyping") is None:
        sys.modules["jaxtyping"] = _Annotations("jaxtyping")
