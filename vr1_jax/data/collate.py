"""Encoded prompts of any sizes to one padded numpy batch of a bucket's shape, the arrays of `types.Prompt`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vr1_jax.data.layout import PromptLayout, VisualBlock, mrope_positions, patch_layout, visual_slots


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
