"""Encoded prompts of any sizes to one padded numpy batch of a bucket's shape, the arrays of `types.Prompt`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

# Where everything goes in a prompt: mRoPE positions, visual slots, patch coordinates, attention windows.
#
# All ragged logic of the model lives here, once, in numpy. A *grid* is (slices, patch rows, patch columns) of
# one image or video, as the processors report it; a *unit* is a merge x merge block of patches, one token.

# How positions go on after a visual block.
#   published      after the largest position of the block on any axis: what Qwen2.5-VL was trained with
#   transformers5  after its larger side, so that text overlaps the video's time axis: for comparison
PositionRule = Literal["published", "transformers5"]

# What one slice of a video lasts, as the positions see it.
#   measured   its own duration, from the sampled frames' rate
#   constant   one second: what upstream's training saw, which dropped the duration before the loss
TimeSpacing = Literal["measured", "constant"]


@dataclass(frozen=True)
class PromptLayout:
    """What must be known of a model, and of the user's choices, to lay out a prompt."""

    visual_tokens: tuple[int, int]  # placeholders of images and videos
    tokens_per_second: float
    merge: int = 2
    window_units: int = 4
    rule: PositionRule = "published"
    spacing: TimeSpacing = "measured"

    @classmethod
    def of(
        cls, model_config: Any, rule: PositionRule = "published", spacing: TimeSpacing = "measured"
    ) -> "PromptLayout":
        """From a `models.config.ModelConfig`, which this numpy-only package does not import."""
        vision = model_config.vision
        return cls(
            visual_tokens=(model_config.image_token, model_config.video_token),
            tokens_per_second=vision.tokens_per_second,
            merge=vision.merge,
            window_units=vision.window_units,
            rule=rule,
            spacing=spacing,
        )

    def is_visual(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, self.visual_tokens)


@dataclass(frozen=True)
class VisualBlock:
    """One image or video inside a prompt: its grid, and the seconds that one slice lasts (0 for images)."""

    grid: tuple[int, int, int]
    seconds_per_slice: float = 0.0

    def units(self, merge: int) -> int:
        slices, rows, columns = self.grid
        return slices * rows * columns // merge**2


class LayoutError(ValueError):
    """Tokens and visual blocks that do not belong together."""


def mrope_positions(tokens: np.ndarray, blocks: Sequence[VisualBlock], layout: PromptLayout) -> np.ndarray:
    """[3, T] int32 (time, row, column) of one unpadded prompt.

    Text counts up on all three axes. Inside a block every unit has the block's start plus its own time, row
    and column; a slice's time is trunc(slice * seconds * tokens_per_second) in fp32, as the reference has it.

        text text | video of 2 slices x 1 x 2 units, 1 s each at 2 tokens/s | text
        time      0 1 | 2 2 4 4 | 5                       (transformers5: | 4)
        row       0 1 | 2 2 2 2 | 5
        column    0 1 | 2 3 2 3 | 5
    """
    is_visual = layout.is_visual(tokens)
    _check_lengths(is_visual, blocks, layout.merge)
    positions = np.empty((3, len(is_visual)), np.int32)
    following, at, remaining = 0, 0, list(blocks)
    while at < len(is_visual):
        if is_visual[at]:
            block = remaining.pop(0)
            end = at + block.units(layout.merge)
            coords = _unit_coords(block, layout)
            positions[:, at:end] = following + coords
            if layout.rule == "published":
                following += int(coords.max()) + 1
            else:
                following += max(block.grid[1:]) // layout.merge
        else:
            end = at + 1 + int(np.argmax(np.append(is_visual[at + 1 :], True)))
            positions[:, at:end] = following + np.arange(end - at)
            following += end - at
        at = end
    return positions


def visual_slots(
    tokens: np.ndarray, blocks: Sequence[VisualBlock], units_per_slice: int, layout: PromptLayout
) -> np.ndarray:
    """[T] int32: the visual unit that fills each token, -1 for text.

    Units are numbered slice by slice over all blocks of the prompt, `units_per_slice` apart: slices are padded
    to the same number of patches, so a small slice leaves numbers unused.
    """
    is_visual = layout.is_visual(tokens)
    _check_lengths(is_visual, blocks, layout.merge)
    slots = np.full(len(tokens), -1, np.int32)
    numbers, first_slice = [], 0
    for block in blocks:
        slices = block.grid[0]
        per_slice = block.units(layout.merge) // slices
        starts = (first_slice + np.arange(slices)) * units_per_slice
        numbers.append((starts[:, None] + np.arange(per_slice)).ravel())
        first_slice += slices
    if numbers:
        slots[is_visual] = np.concatenate(numbers)
    return slots


def patch_layout(grid: tuple[int, int, int], layout: PromptLayout) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [P, 2] and window ids [P] of one slice's patches, in the processors' patch order.

    The order is unit by unit, row-major inside a unit:  (0,0) (0,1) (1,0) (1,1) | (0,2) (0,3) (1,2) (1,3) | ...
    Windows tile the grid of units from its corner; the last row and column of windows may be smaller.
    """
    (_, rows, columns), merge = grid, layout.merge
    row, column = np.mgrid[:rows, :columns]
    coords = np.stack([row, column], -1).reshape(rows // merge, merge, columns // merge, merge, 2)
    coords = coords.swapaxes(1, 2).reshape(-1, 2).astype(np.int32)
    side = merge * layout.window_units
    windows_across = -(-columns // side)
    windows = coords[:, 0] // side * windows_across + coords[:, 1] // side
    return coords, windows.astype(np.int32)


def _unit_coords(block: VisualBlock, layout: PromptLayout) -> np.ndarray:
    (slices, rows, columns), merge = block.grid, layout.merge
    is_video = block.seconds_per_slice > 0
    seconds = 1.0 if layout.spacing == "constant" and is_video else block.seconds_per_slice
    interval = np.float32(layout.tokens_per_second) * np.float32(seconds)
    times = np.trunc(np.arange(slices, dtype=np.float32) * interval).astype(np.int32)
    coords = np.meshgrid(times, np.arange(rows // merge), np.arange(columns // merge), indexing="ij")
    return np.stack(coords).reshape(3, -1).astype(np.int32)


def _check_lengths(is_visual: np.ndarray, blocks: Sequence[VisualBlock], merge: int) -> None:
    expected, found = sum(block.units(merge) for block in blocks), int(np.sum(is_visual))
    if expected != found:
        raise LayoutError(f"the prompt has {found} visual tokens where its media need {expected}")


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, unpadded: its tokens, and for each image or video its block and uint8 patches [m, p, R]."""

    tokens: np.ndarray
    blocks: tuple[VisualBlock, ...]
    patches: tuple[np.ndarray, ...]

    @property
    def bucket(self) -> "Bucket":
        """The smallest bucket that holds this prompt."""
        slices = sum(len(patches) for patches in self.patches)
        return Bucket(slices, max((p.shape[1] for p in self.patches), default=0), len(self.tokens))


@dataclass(frozen=True, order=True)
class Bucket:
    """The shape that a batch is padded to; everything of one bucket runs in one compiled program."""

    slices: int  # temporal slices of a video, two frames each
    patches: int  # patches of 14 x 14 pixels in a slice
    tokens: int  # tokens of the prompt, placeholders of the media included

    def holds(self, other: "Bucket") -> bool:
        return self.slices >= other.slices and self.patches >= other.patches and self.tokens >= other.tokens

    def __str__(self) -> str:
        return f"{self.slices} slices of {self.patches} patches and {self.tokens} tokens"


class DoesNotFit(ValueError):
    """A prompt larger than its bucket. Prompts are never cut: that would go through visual tokens."""


def require_fit(prompt: EncodedPrompt, bucket: Bucket) -> None:
    if not bucket.holds(prompt.bucket):
        raise DoesNotFit(f"a prompt of {prompt.bucket} does not fit the bucket of {bucket}")


def collate(
    prompts: Sequence[EncodedPrompt], bucket: Bucket, layout: PromptLayout, *, pad_token: int, values: int
) -> dict[str, np.ndarray]:
    """Arrays [B, ...] by field name. `values` is R, needed when no prompt of the batch has media."""
    batch, shape = len(prompts), (bucket.slices, bucket.patches)
    arrays = {
        "tokens": np.full((batch, bucket.tokens), pad_token, np.int32),
        "mask": np.zeros((batch, bucket.tokens), bool),
        "positions": np.zeros((batch, 3, bucket.tokens), np.int32),
        "visual_slots": np.full((batch, bucket.tokens), -1, np.int32),
        "patches": np.zeros((batch, *shape, values), np.uint8),
        "patch_coords": np.zeros((batch, *shape, 2), np.int32),
        "patch_windows": np.full((batch, *shape), -1, np.int32),
    }
    for row, prompt in enumerate(prompts):
        require_fit(prompt, bucket)
        _fill(row, prompt, arrays, layout)
    return arrays


def _fill(row: int, prompt: EncodedPrompt, arrays: dict[str, np.ndarray], layout: PromptLayout) -> None:
    units_per_slice = arrays["patches"].shape[2] // layout.merge**2
    text = np.s_[row, ..., arrays["tokens"].shape[1] - len(prompt.tokens) :]
    arrays["tokens"][text] = prompt.tokens
    arrays["mask"][text] = True
    arrays["positions"][text] = mrope_positions(prompt.tokens, prompt.blocks, layout)
    arrays["visual_slots"][text] = visual_slots(prompt.tokens, prompt.blocks, units_per_slice, layout)
    first = 0
    for block, patches in zip(prompt.blocks, prompt.patches, strict=True):
        at = np.s_[row, first : first + len(patches), : patches.shape[1]]
        arrays["patches"][at] = patches
        arrays["patch_coords"][at], arrays["patch_windows"][at] = patch_layout(block.grid, layout)
        first += len(patches)


def collate_answers(
    answers: Sequence[Sequence[int]], counted: Sequence[Sequence[bool]], tokens: int, pad_token: int
) -> dict[str, np.ndarray]:
    """Right-padded answers to learn: "tokens", their "mask", and which of them the "loss" counts, each [B, C]."""
    arrays = {
        "tokens": np.full((len(answers), tokens), pad_token, np.int32),
        "mask": np.zeros((len(answers), tokens), bool),
        "loss": np.zeros((len(answers), tokens), bool),
    }
    for row, (answer, counts) in enumerate(zip(answers, counted, strict=True)):
        if len(answer) > tokens:
            raise DoesNotFit(f"an answer of {len(answer)} tokens does not fit {tokens}")
        arrays["tokens"][row, : len(answer)] = answer
        arrays["mask"][row, : len(answer)] = True
        arrays["loss"][row, : len(answer)] = counts
    return arrays
