"""Questions that are no records to encoded prompts; and media of many records, read ahead.

`data.encode` encodes records. Here is what a single question needs besides: any conversation, and a report of
which frames the model sees.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from vr1_jax.data.ahead import cpu_count, work_ahead
from vr1_jax.data.collate import EncodedPrompt
from vr1_jax.data.layout import VisualBlock
from vr1_jax.data.tokenizer import ChatTokenizer
from vr1_jax.media.frames import FrameBudget, ImageBudget, VisualGeometry, patchify
from vr1_jax.media.reader import MediaReader
from vr1_jax.media.video import Clip

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class View:
    """An image or video as the model will see it. `clip` tells which frames those are; None for an image."""

    block: VisualBlock
    patches: np.ndarray
    clip: Clip | None = None

    @classmethod
    def of_image(cls, pixels: np.ndarray, geometry: VisualGeometry) -> "View":
        patches, grid = patchify(pixels[None], geometry)
        return cls(VisualBlock(grid), patches)

    @classmethod
    def of_clip(cls, clip: Clip, geometry: VisualGeometry) -> "View":
        patches, grid = patchify(clip.frames, geometry)
        return cls(VisualBlock(grid, geometry.temporal / clip.sample_fps), patches, clip)

    def seen(self, patch: int) -> dict[str, Any]:
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


def view_media(
    reader: MediaReader,
    kind: Literal["image", "video", "frames"],
    path: Path,
    geometry: VisualGeometry,
    frames: FrameBudget,
    images: ImageBudget,
) -> View:
    if kind == "image":
        return View.of_image(reader.image(path, images), geometry)
    read = reader.frame_folder if kind == "frames" else reader.video
    return View.of_clip(read(path, frames), geometry)


def encode_messages(
    messages: list[dict], tokenizer: ChatTokenizer, view: View | None, merge: int
) -> EncodedPrompt:
    """A conversation up to the answer, with at most one image or video."""
    counts = [] if view is None else [view.block.units(merge)]
    tokens = np.array(tokenizer.encode_chat(messages, counts), np.int32)
    if view is None:
        return EncodedPrompt(tokens, (), ())
    return EncodedPrompt(tokens, (view.block,), (view.patches,))


def read_ahead(
    work: Callable[[Item, MediaReader], Result],
    items: Iterable[Item],
    unit: int,
    depth: int = 16,
    workers: int | None = None,
) -> Iterator[Result]:
    """`work` on every item, in order, some of it done in advance by threads with a decoding process each."""
    with ExitStack() as stack:
        readers = [stack.enter_context(MediaReader(unit=unit)) for _ in range(workers or min(4, cpu_count()))]
        yield from work_ahead(work, items, readers, depth)
