"""Arguments that several commands share, as dataclasses to inherit from, and checks of arguments."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vr1_jax.errors import UsageError

if TYPE_CHECKING:
    from vr1_jax.data.presentation import Presentation
    from vr1_jax.media.frames import FrameBudget, ImageBudget


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
        from vr1_jax.data.presentation import read_presentation
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
