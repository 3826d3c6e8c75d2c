"""What the model is asked, and what supervised training wants it to answer.

Texts are Video-R1's, character by character (a changed word changes what a published checkpoint answers).
Its three programs differ: supervised training sets its own system turn, evaluation words the template
otherwise. The `upstream` preset keeps that; `fixed` asks in reinforcement learning's words everywhere.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vr1_jax.data.collate import PositionRule, TimeSpacing
from vr1_jax.data.records import Sample
from vr1_jax.data.tokenizer import ChatTokenizer
from vr1_jax.errors import UserError
from vr1_jax.files import read_json
from vr1_jax.media.frames import EVALUATION_BUDGET, IMAGE_BUDGET, TRAINING_BUDGET, FrameBudget, ImageBudget

Preset = Literal["fixed", "upstream"]
Stage = Literal["sft", "rl", "evaluation"]
LossOn = Literal["answer", "upstream"]

PONDER = (
    "Please think about this question as if you were a human pondering deeply. "
    "Engage in an internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', "
    "'let's break it down', etc, or other natural language thought expressions "
    "It's encouraged to include self-reflection or verification in the reasoning process. "
)
TRAINING_TAGS = (
    "Provide your detailed reasoning between the <think> </think> tags, "
    "and then give your final answer between the <answer> </answer> tags."
)
EVALUATION_TAGS = (
    "Provide your detailed reasoning between the <think> and </think> tags, "
    "and then give your final answer between the <answer> and </answer> tags."
)
NUMBER = " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags."
ANSWER_FORM = {
    "multiple choice": " Please provide only the single option letter (e.g., A, B, C, D, etc.) "
    "within the <answer> </answer> tags.",
    "numerical": NUMBER,
    "OCR": " Please transcribe text from the image/video clearly and provide your text answer "
    "within the <answer> </answer> tags.",
    "free-form": " Please provide your text answer within the <answer> </answer> tags.",
    "regression": NUMBER,
}


@dataclass(frozen=True)
class PromptStyle:
    """The words around a question. `system` None: the chat template's own default system turn."""

    instruction: str = PONDER + TRAINING_TAGS
    system: str | None = None


FIXED = PromptStyle()
UPSTREAM_SFT = PromptStyle(system="You are a helpful assistant")
UPSTREAM_EVALUATION = PromptStyle(PONDER + EVALUATION_TAGS)


def prompt_style(preset: Preset, stage: Stage) -> PromptStyle:
    if preset == "upstream" and stage == "sft":
        return UPSTREAM_SFT
    if preset == "upstream" and stage == "evaluation":
        return UPSTREAM_EVALUATION
    return FIXED


def question_text(sample: Sample, style: PromptStyle = FIXED) -> str:
    """The text of the user's turn. Options are listed for multiple choice only, right after the problem."""
    options = ""
    if sample.problem_type == "multiple choice":
        options = "Options:\n" + "".join(f"{option}\n" for option in sample.options)
    return f"{sample.problem}{options}\n{style.instruction}{ANSWER_FORM[sample.problem_type]}"


def prompt_messages(sample: Sample, style: PromptStyle = FIXED) -> list[dict]:
    """The conversation up to the answer, as chat templates take it: media first, then the question."""
    media = [] if sample.data_type == "text" else [{"type": "video" if sample.is_video else "image"}]
    question = {"role": "user", "content": [*media, {"type": "text", "text": question_text(sample, style)}]}
    if style.system is None:
        return [question]
    return [{"role": "system", "content": [{"type": "text", "text": style.system}]}, question]


def encode_prompt(
    sample: Sample, tokenizer: ChatTokenizer, visual_tokens: int, style: PromptStyle = FIXED
) -> list[int]:
    """Tokens up to and with "assistant\\n". `visual_tokens` of the image or video; 0 for a text record."""
    counts = [] if sample.data_type == "text" else [visual_tokens]
    if sum(counts) != visual_tokens or 0 in counts:
        raise ValueError(f"{visual_tokens} visual tokens for data_type {sample.data_type}")
    return tokenizer.encode_chat(prompt_messages(sample, style), counts)


def target_text(sample: Sample) -> str:
    """What supervised training teaches: reasoning, newline, answer."""
    if sample.process is None:
        sample.refuse("supervised training needs the reasoning of a chain-of-thought set", "process")
    return f"{sample.process}\n{sample.solution}"


def encode_completion(text: str, tokenizer: ChatTokenizer) -> list[int]:
    """An answer's tokens with the end of its turn, as the model would have sampled them."""
    return [*tokenizer.encode_text(text), tokenizer.end_of_turn]


def encode_target(sample: Sample, tokenizer: ChatTokenizer) -> list[int]:
    return encode_completion(target_text(sample), tokenizer)


@dataclass(frozen=True)
class SupervisedTokens:
    """A prompt and its answer, and which tokens of each the loss counts."""

    prompt: list[int]
    target: list[int]
    prompt_loss: list[bool]
    target_loss: list[bool]


def encode_supervised(
    sample: Sample,
    tokenizer: ChatTokenizer,
    visual_tokens: int,
    style: PromptStyle = FIXED,
    loss_on: LossOn = "answer",
) -> SupervisedTokens:
    """Tokens of supervised training.

    `loss_on="upstream"` counts what upstream's collator left in its labels: everything but padding and image
    placeholders. That includes the question, video placeholders and the newline after the answer's turn, but not
    the very first token, which nothing predicts.
    """
    prompt = encode_prompt(sample, tokenizer, visual_tokens, style)
    target = encode_target(sample, tokenizer)
    if loss_on == "answer":
        return SupervisedTokens(prompt, target, [False] * len(prompt), [True] * len(target))
    target = [*target, *tokenizer.encode_text("\n")]
    left_out = (tokenizer.pad_token, tokenizer.image_token)
    return SupervisedTokens(
        prompt,
        target,
        [False, *(token not in left_out for token in prompt[1:])],
        [token not in left_out for token in target],
    )


# How records are put before a model. A run writes down how it trains; whatever asks the model later reads it.
#
# The file lies beside config and tokenizer and travels with them through every conversion. A model without one was
# trained elsewhere, and is asked as Video-R1 asks.

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
