"""Image files to RGB arrays of the model's size, and folders of frames as clips."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from vr1_jax.media.frames import (
    FrameBudget,
    ImageBudget,
    MediaError,
    frame_indices,
    frame_size,
    smart_nframes,
    smart_resize,
)

FRAME_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
PILLOW_FAILURES = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError)
# What Pillow's many decoders raise on damaged files; a decompression bomb is not among them (see below).


def read_image(path: str | Path, budget: ImageBudget, unit: int = 28) -> UInt8[np.ndarray, "height width 3"]:
    """The image in RGB, resized to fit the budget. EXIF orientation is not applied, as upstream does not."""
    pixels = open_rgb(path)
    size = target_size(
        path, pixels.shape, lambda h, w: smart_resize(h, w, budget.min_pixels, budget.max_pixels, unit)
    )
    return resize_frame(pixels, *size)


def open_rgb(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image file whatever its name says, first picture of an animation.

    RGBA is laid on white; other transparency is dropped, as upstream does. 16-bit grey keeps its upper 8
    bits (Pillow's own conversion clips everything above 255 to white); floating-point pixels are refused.
    """
    from PIL import Image

    require_file(path)
    try:
        with Image.open(path) as image:
            image.load()
            return _rgb(path, image)
    except Image.DecompressionBombError as error:
        raise MediaError(path, "too_large", str(error)) from error
    except MediaError:
        raise
    except PILLOW_FAILURES as error:
        raise MediaError(path, "undecodable", f"not a readable image: {error}") from error


def _rgb(path, image) -> np.ndarray:
    from PIL import Image

    if image.mode == "RGBA":
        canvas = Image.new("RGB", image.size, (255, 255, 255))
        canvas.paste(image, mask=image.getchannel("A"))
        return np.asarray(canvas)
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise MediaError(path, "undecodable", "floating-point pixels have no fixed range; save it as 8-bit RGB")
    return np.asarray(image.convert("RGB"))


def require_file(path: str | Path) -> None:
    """Refuse what is missing, empty or no regular file before any decoder sees it."""
    path = Path(path)
    if not path.exists():
        raise MediaError(path, "missing", "no such file")
    if not path.is_file():
        raise MediaError(path, "undecodable", "not a file")
    if path.stat().st_size == 0:
        raise MediaError(path, "undecodable", "the file is empty")


def target_size(path, shape, rule) -> tuple[int, int]:
    """`rule(height, width)`, its refusal naming the file."""
    try:
        return rule(*shape[:2])
    except ValueError as error:
        raise MediaError(path, "aspect_ratio", str(error)) from error


def resize_frame(
    pixels: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Antialiased bicubic in uint8, as the reference resizes still images: rounded after each of two passes."""
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def resize_video_frame(
    pixels: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Antialiased bicubic in floats, as the reference resizes video frames: rounded and clipped once, at the end.

    At sharp edges the two ways differ by up to ten levels.
    """
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    channels = [
        Image.fromarray(pixels[..., n].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        for n in range(3)
    ]
    return np.rint(np.clip(np.stack(channels, axis=-1), 0, 255)).astype(np.uint8)


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts frame 2 before frame 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


def read_frame_folder(
    path: str | Path, budget: FrameBudget, fps: float, unit: int = 28
) -> tuple[UInt8[np.ndarray, "F height width 3"], Int[np.ndarray, " F"], int]:
    """Frames sampled from a folder of pictures in natural order, their numbers, and how many there are."""
    path = Path(path)
    if not path.is_dir():
        raise MediaError(path, "missing", "no such folder of frames")
    files = sorted(
        (file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES),
        key=lambda file: natural_key(file.name),
    )
    if not files:
        raise MediaError(path, "undecodable", f"no frames; expected files ending in {sorted(FRAME_SUFFIXES)}")
    indices = frame_indices(len(files), smart_nframes(len(files), fps, budget))
    frames, shape = [], None
    for index in indices:
        pixels = open_rgb(files[index])
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise MediaError(files[index], "undecodable", f"{pixels.shape} differs from the first frame's {shape}")
        size = target_size(path, shape, lambda h, w: frame_size(h, w, len(indices), budget, unit))
        frames.append(resize_frame(pixels, *size))
    return np.stack(frames), indices, len(files)
