"""Arguments of commands: dataclasses read from a command line by tyro, and those that several commands share."""

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from vr1_jax.errors import UsageError

if TYPE_CHECKING:
    from vr1_jax.data.prompts import Presentation
    from vr1_jax.media.frames import FrameBudget, ImageBudget

Kind = TypeVar("Kind")

RULES = ConstructorRegistry()


def parse(kind: type[Kind], words: Sequence[str], **settings: Any) -> Any:
    """A dataclass read from a command line; what tyro or its own checks refuse is a UsageError of one line.

    `settings` are tyro's; with return_unknown_args, the words left over come as the second of two.
    """
    settings |= {"args": list(words), "registry": RULES}
    try:
        with _captured_errors() as errors:
            return tyro.cli(kind, **settings)
    except SystemExit as stop:
        if not stop.code:  # --help: once more, in the terminal's width
            print(settings.get("description") or "")  # of which tyro would make a line of each paragraph
            tyro.cli(kind, **settings | {"description": ""})
        message = _read_box(errors.getvalue())
        raise UsageError(message.removeprefix(f"{kind.__name__}: ")) from None  # where its __post_init__ raised


@contextlib.contextmanager
def _captured_errors() -> Iterator[io.StringIO]:
    """What tyro writes: plain, as it is no terminal, and in lines so long that no path is broken."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            yield errors
    finally:
        del os.environ["COLUMNS"]
        os.environ.update({} if columns is None else {"COLUMNS": columns})


def _read_box(box: str) -> str:
    """One line of tyro's several: a title, what is wrong, and help, between rules; arguments are indented."""
    title, what, *more = re.split(r"^ +-+ *$", box, flags=re.MULTILINE)
    named = [", ".join(re.findall(r"^ {6}(\S.*?) *$", section, re.MULTILINE)) for section in (what, *more)]
    if "Required" in title:
        return f"required: {named[0]}" + f"; unknown: {named[1]}" * ("Unrecognized" in more[0])
    what = " ".join(what.split()).removeprefix("Error parsing ").rstrip(".")
    what = re.sub(r"no type matching (.*) could be instantiated from (.*)\. Got errors.*", r"\2 is not \1", what)
    similar = "Perhaps" in more[0] or "similar" in more[0]
    return what + f"; is it {named[1]}?" * similar


@RULES.primitive_rule
def _read_optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """`int | None` looks like an int in help and errors; the word None still means None."""
    kinds = get_args(info.type)
    if len(kinds) != 2 or NoneType not in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec) or spec.nargs != 1:
        return None
    return dataclasses.replace(
        spec,
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
        choices=spec.choices and (*spec.choices, "None"),
    )


def check_at_least(least: int, arguments: Any, *names: str) -> None:
    for name in names:
        if (value := getattr(arguments, name)) is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")


def check_directory(name: str, path: Path) -> None:
    if not path.is_dir():
        raise UsageError(f"{name} {path}: {'not a directory' if path.exists() else 'no such directory'}")


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How records are put before a model; None is as the model was trained."""

    frames: int | None = None  # most frames of a video
    frame_pixels: int | None = None  # pixels of a frame after resizing
    image_pixels: int | None = None  # most pixels of an image after resizing
    prompt: Literal["fixed", "upstream"] | None = None  # whose words around a question
    positions: Literal["published", "transformers5"] | None = None  # how positions go on after a video
    # Duration of a slice of a video, as positions see it: its own, or always one second.
    spacing: Literal["measured", "constant"] | None = None

    def __post_init__(self):
        check_at_least(2, self, "frames")

    def presentation(self, model: Path, *, evaluating: bool = False) -> "Presentation":
        """How the model was trained to see records, with what the user wants otherwise."""
        from vr1_jax.data.prompts import read_presentation
        from vr1_jax.weights.checkpoint_dir import assets_directory

        trained = read_presentation(assets_directory(model))
        names = ("frames", "frame_pixels", "image_pixels", "prompt", "positions", "spacing")
        try:
            told = {name: getattr(self, name) for name in names}
            return (trained.evaluated() if evaluating else trained).told(**told)
        except ValueError as error:
            raise UsageError(f"--frames, --frame-pixels or --image-pixels: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """How large media are, for commands that prepare or show training data."""

    frames: int = 16  # most frames of a video
    frame_pixels: int = 128 * 28 * 28  # pixels of a frame after resizing
    image_pixels: int = 256 * 28 * 28  # most pixels of an image after resizing

    def __post_init__(self):
        check_at_least(2, self, "frames")

    def budgets(self) -> "tuple[FrameBudget, ImageBudget]":
        from vr1_jax.media.frames import TRAINING_BUDGET, FrameBudget, ImageBudget

        fewest, pixels = min(TRAINING_BUDGET.min_frames, self.frames), self.frame_pixels
        try:
            frames = FrameBudget(min_frames=fewest, max_frames=self.frames, min_pixels=pixels, max_pixels=pixels)
            return frames, ImageBudget(max_pixels=self.image_pixels)
        except ValueError as error:
            raise UsageError(f"--frame-pixels or --image-pixels: {error}") from None
