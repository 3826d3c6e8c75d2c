"""One record to a prompt: its tokens, its pixels as patches, and the same prompt with its time shuffled.

Two ways to shuffle (T-GRPO's second group of answers). By "frames", as upstream: frames are permuted and paired
into slices anew, so the patches change. By "slices": pairs stay together, so the vision tower's features are
the same and only `visual_slots` changes. Timestamps stay where they were, and with them the positions.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from vr1_jax.data.collate import EncodedPrompt, VisualBlock
from vr1_jax.data.prompts import FIXED, LossOn, PromptStyle, SupervisedTokens, encode_supervised, prompt_messages
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
class View:
    """An image or video as the model will see it. `clip` tells which frames those are; None for an image."""

    frames: UInt8[np.ndarray, "F height width 3"]
    block: VisualBlock
    patches: UInt8[np.ndarray, "M P R"]
    clip: Clip | None = None

    def describe(self, patch: int) -> dict[str, Any]:
        """In numbers: `size` is width and height after resizing, `grid` slices and patch rows and columns."""
        _, rows, columns = self.block.grid
        seen = {"size": [columns * patch, rows * patch], "grid": list(self.block.grid)}
        if self.clip is None:
            return seen
        return seen | {
            "frames": self.clip.indices.tolist(),
            "timestamps": [round(float(time), 6) for time in self.clip.timestamps],
            "total_frames": self.clip.total_frames,
            "fps": float(self.clip.fps),
            "reader": self.clip.reader,
        }


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A record ready to be collated; texts have no view."""

    sample: Sample
    prompt: EncodedPrompt
    view: View | None
    supervised: SupervisedTokens | None = None

    @property
    def indices(self) -> tuple[int, ...]:
        """Which frames of a video its view shows."""
        return () if self.view is None or self.view.clip is None else tuple(self.view.clip.indices.tolist())

    @property
    def seconds_per_slice(self) -> float:
        """What a temporal slice of a video lasts; 0 for anything else."""
        return 0.0 if self.view is None or self.view.clip is None else self.view.block.seconds_per_slice


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns records into prompts for one model and one set of budgets; picklable.

    The one way to a prompt's arrays: training, evaluation, scoring and single questions all take it.
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
        view = None if sample.data_type == "text" else self.view(sample.data_type, sample.media(root), media)
        if self.supervised is None:
            return Encoded(sample, self.encode(prompt_messages(sample, self.style), view), view)
        visual_tokens = 0 if view is None else view.block.units(self.geometry.merge)
        supervised = encode_supervised(sample, self.tokenizer, visual_tokens, self.style, self.supervised)
        return Encoded(sample, self._prompt(supervised.prompt, view), view, supervised)

    def view(self, kind: str, path: str | Path, media: Media) -> View:
        """`kind` is image, video or frames (a folder of a video's)."""
        if kind == "image":
            frames = media.image(path, self.image_budget)[None]
            patches, grid = patchify(frames, self.geometry)
            return View(frames, VisualBlock(grid), patches)
        clip = (media.frame_folder if kind == "frames" else media.video)(path, self.frame_budget)
        patches, grid = patchify(clip.frames, self.geometry)
        return View(clip.frames, VisualBlock(grid, self.geometry.temporal / clip.sample_fps), patches, clip)

    def encode(self, messages: list[dict], view: View | None) -> EncodedPrompt:
        """A conversation up to the answer, with at most one image or video."""
        counts = [] if view is None else [view.block.units(self.geometry.merge)]
        return self._prompt(self.tokenizer.encode_chat(messages, counts), view)

    def _prompt(self, tokens: list[int], view: View | None) -> EncodedPrompt:
        blocks, patches = ((), ()) if view is None else ((view.block,), (view.patches,))
        return EncodedPrompt(np.asarray(tokens, np.int32), blocks, patches)


def shuffled_patches(
    encoded: Encoded, rng: np.random.Generator, geometry: VisualGeometry
) -> tuple[UInt8[np.ndarray, "M P R"], Int[np.ndarray, " F"]]:
    """Patches of the video with its frames in another order, and that order; its own where all look alike."""
    order = shuffle_order(frame_digests(encoded.view.frames), rng)
    if (order == np.arange(len(order))).all():
        return encoded.prompt.patches[0], order
    return patchify(encoded.view.frames[order], geometry)[0], order


def shuffled_slots(
    encoded: Encoded, slots: Int[np.ndarray, " T"], units_per_slice: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " M"]]:
    """`visual_slots` of the video with its temporal slices in another order, and that order."""
    (patches,) = encoded.prompt.patches
    order = shuffle_order([values.tobytes() for values in patches], rng)
    slices, units = np.divmod(slots, units_per_slice)
    return np.where(slots < 0, slots, order[slices] * units_per_slice + units).astype(slots.dtype), order
