"""How records are put before a model. A run writes down how it trains; whatever asks the model later reads it.

The file lies beside config and tokenizer and travels with them through every conversion. A model without one was
trained elsewhere, and is asked as Video-R1 asks.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vr1_jax.data.layout import PositionRule, TimeSpacing
from vr1_jax.data.prompts import Preset, PromptStyle, Stage, prompt_style
from vr1_jax.errors import UserError
from vr1_jax.files import read_json
from vr1_jax.media.frames import EVALUATION_BUDGET, IMAGE_BUDGET, TRAINING_BUDGET, FrameBudget, ImageBudget

FILE = "presentation.json"


@dataclass(frozen=True)
class Presentation:
    """The words, the frames and the positions of a prompt."""

    prompt: Preset = "fixed"
    stage: Stage = "rl"  # supervised training and evaluation word the upstream preset differently
    frames: FrameBudget = TRAINING_BUDGET
    images: ImageBudget = IMAGE_BUDGET
    positions: PositionRule = "published"
    spacing: TimeSpacing = "measured"

    @property
    def style(self) -> PromptStyle:
        return prompt_style(self.prompt, self.stage)

    def told(
        self,
        *,
        frames: int | None = None,
        frame_pixels: int | None = None,
        image_pixels: int | None = None,
        **others: Any,
    ) -> "Presentation":
        """With what a user asks for instead: the most frames, pixels of each, most pixels of an image, and fields.

        None leaves a setting as it is. A ValueError names what does not go together.
        """
        budget, images = self.frames, self.images
        if frames is not None:
            fewest = min(budget.min_frames, frames)
            budget = dataclasses.replace(budget, min_frames=fewest, max_frames=frames)
        if frame_pixels is not None:
            budget = dataclasses.replace(budget, min_pixels=frame_pixels, max_pixels=frame_pixels)
        if image_pixels is not None:
            images = dataclasses.replace(
                images, min_pixels=min(images.min_pixels, image_pixels), max_pixels=image_pixels
            )
        others = {name: value for name, value in others.items() if value is not None}
        return dataclasses.replace(self, frames=budget, images=images, **others)

    def evaluated(self) -> "Presentation":
        """As evaluations ask. The paper evaluates with more pixels than it trains with; a model that was trained
        with other pixels than the paper's keeps its own."""
        frames = self.frames
        if (frames.min_pixels, frames.max_pixels) == (TRAINING_BUDGET.min_pixels, TRAINING_BUDGET.max_pixels):
            frames = dataclasses.replace(frames, max_pixels=EVALUATION_BUDGET.max_pixels)
        return dataclasses.replace(self, stage="evaluation", frames=frames)


def read_presentation(assets: Path) -> Presentation:
    """What the directory of config and tokenizer says, or the default where it says nothing."""
    path = assets / FILE
    if not path.is_file():
        return Presentation()
    try:
        return _decode(Presentation, read_json(path), "")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def write_presentation(assets: Path, presentation: Presentation) -> None:
    text = json.dumps(dataclasses.asdict(presentation), indent=2)
    (assets / FILE).write_text(text + "\n", encoding="utf-8")


def _decode(kind: type, content: Any, at: str) -> Any:
    """A dataclass of choices, numbers and dataclasses; strict, for the file may be a stranger's."""
    if not isinstance(content, dict):
        raise ValueError(f"{at.rstrip('.') or 'it'} is not an object")
    hints = get_type_hints(kind)
    if unknown := sorted(content.keys() - hints.keys()):
        raise ValueError(f"{at}{unknown[0]} is no setting")
    values = {}
    for name, value in content.items():
        hint, where = hints[name], f"{at}{name}"
        if dataclasses.is_dataclass(hint):
            values[name] = _decode(hint, value, f"{where}.")
        elif get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise ValueError(f"{where} is {value!r}; it must be one of: {', '.join(get_args(hint))}")
            values[name] = value
        elif isinstance(value, bool) or not isinstance(value, int | hint) or not math.isfinite(value):
            raise ValueError(f"{where} is {value!r}, which is no {'whole ' * (hint is int)}number")
        else:
            values[name] = hint(value)
    return kind(**values)
