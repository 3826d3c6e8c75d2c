"""Which frames of a clip, at what size, in which patch order: arithmetic without files.

Frame counts, frame indices and sizes follow Video-R1's copy of qwen-vl-utils; the patch order follows the
Hugging Face processors. Pixels stay uint8: the device normalises.
"""

import dataclasses
import hashlib
import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from vr1_jax.errors import UserError

MAX_ASPECT_RATIO = 200
UNIT_PIXELS = 28 * 28  # one visual token covers 2x2 patches of 14x14 pixels
MAX_VIDEO_PIXELS = 90_316_800  # upstream: 90 % of 128,000 visual tokens, over all frames of a clip
MINIMUM_SLACK = 1.05  # upstream lifts a frame's maximum to at least 1.05 times its minimum


class MediaError(UserError):
    """A file that cannot become pixels. `reason` is one word for counting, the message names the file."""

    def __init__(self, path: object, reason: str, detail: str):
        super().__init__(f"{path}: {detail}")
        self.path, self.reason, self.detail = str(path), reason, detail

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.detail)


@dataclasses.dataclass(frozen=True)
class VisualGeometry:
    """How the vision tower cuts frames up: pixels per patch side, patches per unit side, frames per slice."""

    patch: int = 14
    merge: int = 2
    temporal: int = 2

    @property
    def unit(self) -> int:
        """Pixels on the side of one visual token; frame sizes are multiples of it."""
        return self.patch * self.merge


@dataclasses.dataclass(frozen=True)
class ImageBudget:
    """Pixels that an image may have after resizing."""

    min_pixels: int = 4 * UNIT_PIXELS  # fewest pixels after resizing
    max_pixels: int = 256 * UNIT_PIXELS  # most pixels after resizing

    def __post_init__(self):
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} must lie in 1..max_pixels ({self.max_pixels})")


@dataclasses.dataclass(frozen=True)
class FrameBudget:
    """How many frames to take from a clip, and how many pixels each may have after resizing."""

    fps: float = 2.0  # frames taken from a second of video
    min_frames: int = 4  # fewest frames of a video, however short
    max_frames: int = 16  # most frames of a video, however long
    min_pixels: int = 128 * UNIT_PIXELS  # fewest pixels of a frame after resizing
    max_pixels: int = 128 * UNIT_PIXELS  # most pixels of a frame after resizing
    total_pixels: int = MAX_VIDEO_PIXELS  # most pixels of all frames together

    def __post_init__(self):
        if self.fps <= 0:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if not 2 <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"frames must satisfy 2 <= min_frames ({self.min_frames}) <= max_frames ({self.max_frames})"
            )
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} must lie in 1..max_pixels ({self.max_pixels})")

    def pixel_range(self, frames: int) -> tuple[float, float]:
        """Fewest and most pixels of one frame when the clip contributes `frames` of them."""
        share = self.total_pixels / frames * 2
        most = max(min(self.max_pixels, share), int(self.min_pixels * MINIMUM_SLACK))
        return float(self.min_pixels), float(most)


IMAGE_BUDGET = ImageBudget()
TRAINING_BUDGET = FrameBudget()
EVALUATION_BUDGET = FrameBudget(max_pixels=256 * UNIT_PIXELS)


def smart_resize(
    height: int, width: int, min_pixels: int | float, max_pixels: int | float, unit: int = 28
) -> tuple[int, int]:
    """(height, width) in multiples of `unit`, close to the aspect ratio, within the pixel range.

    A thin frame may still exceed `max_pixels`: its short side never falls below one unit.
    """
    if min(height, width) < 1:
        raise ValueError(f"a frame of {width}x{height} pixels is empty")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"{width}x{height} pixels is longer than {MAX_ASPECT_RATIO}:1")
    rows, columns = max(unit, round(height / unit) * unit), max(unit, round(width / unit) * unit)
    if rows * columns > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(unit, math.floor(height / shrink / unit) * unit)
        columns = max(unit, math.floor(width / shrink / unit) * unit)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
    return rows, columns


def most_units(
    min_pixels: int | float, max_pixels: int | float, unit: int = 28, aspect: int | float = MAX_ASPECT_RATIO
) -> int:
    """The most visual tokens that `smart_resize` makes of one frame, of all frames up to `aspect`:1."""
    least, most = min_pixels / unit**2, max_pixels / unit**2
    # Shrinking rounds down, but a side that would vanish stays one unit, and the other keeps its length.
    shrunk = max(int(most), int(math.sqrt(most * aspect)) if aspect > most else 0)
    # Growing rounds both sides up, which adds most where the short side has just passed a whole number of units.
    thinnest = math.sqrt(least / min(aspect, (math.ceil(least) - 0.5) * unit))  # thinner frames are large enough
    grown = [(int(thinnest) + 1) * math.ceil(least / thinnest)]
    for short in range(max(1, math.ceil(thinnest)), int(math.sqrt(least)) + 1):
        long = math.ceil(least / short)
        # Where both sides are whole, floating point lifts both for some frames: at 128 units 8 x 16 to 9 x 17.
        sizes = [(n, n * long // short) for n in range(1, short * unit) if n * long % short == 0]
        lifted = ((short + 1) * unit, (long + 1) * unit)
        whole = short * long == least and any(
            smart_resize(*size, min_pixels, max_pixels, unit) == lifted for size in sizes
        )
        grown.append((short + 1) * (long + whole))
    return max(shrunk, *grown)


def frame_size(height: int, width: int, frames: int, budget: FrameBudget, unit: int = 28) -> tuple[int, int]:
    """Size of each of a clip's `frames` frames after resizing."""
    return smart_resize(height, width, *budget.pixel_range(frames), unit)


def smart_nframes(total_frames: int, fps: float, budget: FrameBudget) -> int:
    """How many frames to take: `budget.fps` of them per second, within limits, even.

    A clip of one frame gives one (patchify doubles it, as it does an image); upstream refuses it.
    """
    if total_frames < 2:
        return total_frames
    fewest = math.ceil(budget.min_frames / 2) * 2
    most = math.floor(min(budget.max_frames, total_frames) / 2) * 2
    wanted = min(max(total_frames / fps * budget.fps, fewest), most)
    return math.floor(wanted / 2) * 2


def frame_indices(total_frames: int, count: int) -> Int[np.ndarray, " count"]:
    """`count` frame numbers spread evenly over 0..total_frames - 1, both ends included.

    The float32 arithmetic of `torch.linspace(0, total_frames - 1, count).round()`, which works inwards from
    both ends. Beyond 130,000 frames torch's own result depends on the vector width of the CPU.
    """
    if count == 1:
        return np.zeros(1, np.int64)
    last = np.float32(total_frames - 1)
    step = last / np.float32(count - 1)
    position = np.arange(count, dtype=np.float32)
    from_start, from_end = step * position, last - step * position[::-1]
    return np.where(np.arange(count) < count // 2, from_start, from_end).round().astype(np.int64)


def patchify(
    frames: UInt8[np.ndarray, "F height width 3"], geometry: VisualGeometry = VisualGeometry()
) -> tuple[UInt8[np.ndarray, "M P R"], tuple[int, int, int]]:
    """Patches in the processors' order, and the grid (slices, patch rows, patch columns).

    Patches run over (unit row, unit column, row in unit, column in unit), values within one over (channel,
    frame in slice, row, column). Frames that do not fill a slice are followed by copies of the last one, so
    an image is doubled.
    """
    patch, merge, temporal = geometry.patch, geometry.merge, geometry.temporal
    count, height, width, channels = frames.shape
    if height % geometry.unit or width % geometry.unit:
        raise ValueError(f"frames of {width}x{height} pixels do not divide into units of {geometry.unit}")
    missing = -count % temporal
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames
    slices, rows, columns = len(frames) // temporal, height // patch, width // patch
    blocks = frames.reshape(
        slices, temporal, rows // merge, merge, patch, columns // merge, merge, patch, channels
    )
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    values = channels * temporal * patch * patch
    return ordered.reshape(slices, rows * columns, values), (slices, rows, columns)


def frame_digests(frames: UInt8[np.ndarray, "F height width 3"]) -> list[bytes]:
    """One short digest per frame: equal frames have equal digests."""
    return [hashlib.blake2b(frame.tobytes(), digest_size=16).digest() for frame in frames]


def shuffle_order(
    contents: Sequence[Hashable], rng: np.random.Generator, slice_frames: int = 1
) -> Int[np.ndarray, " F"]:
    """A random order of a clip's frames that shows something else than the clip did.

    `contents` says which frames look alike: `frame_digests`, or `range(n)` when all differ. An order that
    gives the same picture sequence is drawn again; a clip whose frames all look alike keeps its order.
    `slice_frames=2` moves whole temporal slices: then the vision features move with them.
    """
    if len(contents) < 2:
        return np.arange(len(contents))
    if len(contents) % slice_frames:
        raise ValueError(f"{len(contents)} frames do not divide into slices of {slice_frames}")
    frames = np.arange(len(contents)).reshape(-1, slice_frames)
    slices = [tuple(contents[i] for i in group) for group in frames]
    if len(set(slices)) < 2:
        return frames.reshape(-1)
    while True:
        order = rng.permutation(len(slices))
        if [slices[i] for i in order] != slices:
            return frames[order].reshape(-1)
