"""One record to a prompt: its tokens, its pixels as patches, and the same prompt with its time shuffled.

Two ways to shuffle (T-GRPO's second group of answers). By "frames", as upstream: frames are permuted and paired
into slices anew, so the patches change. By "slices": pairs stay together, so the vision tower's features are
the same and only `visual_slots` changes. Timestamps stay where they were, and with them the positions.
"""

import dataclasses
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from vr1_jax.data.collate import EncodedPrompt
from vr1_jax.data.layout import VisualBlock
from vr1_jax.data.prompts import FIXED, LossOn, PromptStyle, SupervisedTokens, encode_prompt, encode_supervised
from vr1_jax.data.records import Sample
from vr1_jax.data.tokenizer import ChatTokenizer
from vr1_jax.media.frames import (
    IMAGE_BUDGET,
    TRAINING_BUDGET,
    FrameBudget,
    ImageBudget,
    VisualGeometry,
    frame_digests,
    patchify,
    shuffle_order,
)
from vr1_jax.media.video import Clip

GEOMETRY = VisualGeometry()
ShuffleBy = Literal["frames", "slices"]


@runtime_checkable
class Media(Protocol):
    """Where pixels come from: `media.MediaReader`, or `cache.CachedMedia` in front of it."""

    def video(self, path: str | Path, budget: FrameBudget) -> Clip: ...

    def frame_folder(self, path: str | Path, budget: FrameBudget) -> Clip: ...

    def image(self, path: str | Path, budget: ImageBudget) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A record ready to be collated. `frames` are the pixels that its patches were cut from, if it has any.

    `indices` say which frames of the video those are.
    """

    sample: Sample
    prompt: EncodedPrompt
    frames: UInt8[np.ndarray, "F height width 3"] | None
    indices: tuple[int, ...]
    seconds_per_slice: float
    supervised: SupervisedTokens | None = None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns records into prompts for one model and one set of budgets; picklable.

    With `supervised`, records need their reasoning, and bring the tokens of the answer to learn.
    """

    tokenizer: ChatTokenizer
    frame_budget: FrameBudget = TRAINING_BUDGET
    image_budget: ImageBudget = IMAGE_BUDGET
    geometry: VisualGeometry = GEOMETRY
    style: PromptStyle = FIXED
    supervised: LossOn | None = None

    def __call__(self, sample: Sample, media: Media, root: str | Path) -> Encoded:
        """Raises RecordError or MediaError for a record that cannot be used."""
        frames, indices, seconds = self._read(sample, media, root)
        blocks, patches, visual_tokens = (), (), 0
        if frames is not None:
            values, grid = patchify(frames, self.geometry)
            block = VisualBlock(grid, seconds)
            blocks, patches, visual_tokens = (block,), (values,), block.units(self.geometry.merge)
        supervised = None
        if self.supervised is None:
            tokens = encode_prompt(sample, self.tokenizer, visual_tokens, self.style)
        else:
            supervised = encode_supervised(sample, self.tokenizer, visual_tokens, self.style, self.supervised)
            tokens = supervised.prompt
        prompt = EncodedPrompt(np.asarray(tokens, np.int32), blocks, patches)
        return Encoded(sample, prompt, frames, indices, seconds, supervised)

    def _read(
        self, sample: Sample, media: Media, root: str | Path
    ) -> tuple[np.ndarray | None, tuple[int, ...], float]:
        """The frames, which of a video they are, and the seconds that a temporal slice lasts (0 for an image)."""
        if sample.data_type == "text":
            return None, (), 0.0
        path = sample.media(root)
        if sample.data_type == "image":
            return media.image(path, self.image_budget)[None], (), 0.0
        read = media.frame_folder if sample.data_type == "frames" else media.video
        clip = read(path, self.frame_budget)
        return clip.frames, tuple(clip.indices.tolist()), self.geometry.temporal / clip.sample_fps


def shuffled_patches(
    encoded: Encoded, rng: np.random.Generator, geometry: VisualGeometry
) -> tuple[UInt8[np.ndarray, "M P R"], Int[np.ndarray, " F"]]:
    """Patches of the video with its frames in another order, and that order; its own where all look alike."""
    order = shuffle_order(frame_digests(encoded.frames), rng)
    if (order == np.arange(len(order))).all():
        return encoded.prompt.patches[0], order
    return patchify(encoded.frames[order], geometry)[0], order


def shuffled_slots(
    encoded: Encoded, slots: Int[np.ndarray, " T"], units_per_slice: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " M"]]:
    """`visual_slots` of the video with its temporal slices in another order, and that order."""
    (patches,) = encoded.prompt.patches
    order = shuffle_order([values.tobytes() for values in patches], rng)
    slices, units = np.divmod(slots, units_per_slice)
    return np.where(slots < 0, slots, order[slices] * units_per_slice + units).astype(slots.dtype), order
