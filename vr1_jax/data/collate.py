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

    slices: int
    patches: int  # in a slice
    tokens: int

    def holds(self, other: "Bucket") -> bool:
        return self.slices >= other.slices and self.patches >= other.patches and self.tokens >= other.tokens


class DoesNotFit(ValueError):
    """A prompt larger than its bucket. Prompts are never cut: that would go through visual tokens."""


def collate(
    prompts: Sequence[EncodedPrompt], bucket: Bucket, layout: PromptLayout, *, pad_token: int, values: int
) -> dict:
    """Arrays [B, ...] by field name. `values` is R, needed when no prompt of the batch has media."""
    for prompt in prompts:
        if not bucket.holds(prompt.bucket):
            raise DoesNotFit(f"a prompt of {prompt.bucket} does not fit {bucket}")
    rows = [_row(prompt, bucket, layout, pad_token, values) for prompt in prompts]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _row(prompt: EncodedPrompt, bucket: Bucket, layout: PromptLayout, pad_token: int, values: int) -> dict:
    shape, units = (bucket.slices, bucket.patches), bucket.patches // layout.merge**2
    patches = np.zeros((*shape, values), np.uint8)
    coords = np.zeros((*shape, 2), np.int32)
    windows = np.full(shape, -1, np.int32)
    first = 0
    for block, block_patches in zip(prompt.blocks, prompt.patches, strict=True):
        at = np.s_[first : first + block_patches.shape[0], : block_patches.shape[1]]
        patches[at] = block_patches
        coords[at], windows[at] = patch_layout(block.grid, layout)
        first += len(block_patches)

    left = bucket.tokens - len(prompt.tokens)

    def pad(array, fill):
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(left, 0)], constant_values=fill)

    return {
        "tokens": pad(prompt.tokens.astype(np.int32), pad_token),
        "mask": pad(np.ones(len(prompt.tokens), bool), False),
        "positions": pad(mrope_positions(prompt.tokens, prompt.blocks, layout), 0),
        "visual_slots": pad(visual_slots(prompt.tokens, prompt.blocks, units, layout), -1),
        "patches": patches,
        "patch_coords": coords,
        "patch_windows": windows,
    }
