"""A clip's frames as one small picture, decoded again as training decoded them."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.data.encode import Media
from vr1_jax.data.records import RecordError, resolve_media
from vr1_jax.errors import UserError
from vr1_jax.media.cache import CachedMedia
from vr1_jax.media.frames import FrameBudget, ImageBudget, MediaError
from vr1_jax.media.reader import MediaReader
from vr1_jax.tools.report.run_files import ENVIRONMENT, Run

LONGEST_SIDE = 112  # pixels of a thumbnail; frames are never enlarged
WIDEST = 16_383  # pixels of a WebP picture
QUALITY = 55


@dataclass
class Frames:
    """Strips of thumbnails by clip. Each clip is decoded once; what cannot be read has its reason instead."""

    media: Media
    root: Path
    frame_budget: FrameBudget
    image_budget: ImageBudget

    def strip(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """{"webp", "count", "width", "height", "indices", "seconds"}, or {"missing": why}."""
        kind = prompt["data_type"]
        try:
            path = resolve_media(self.root, prompt["path"], folder=kind == "frames")
            if kind == "image":
                return _strip(self.media.image(path, self.image_budget)[None], [], [])
            read = self.media.frame_folder if kind == "frames" else self.media.video
            clip = read(path, self.frame_budget)
        except (RecordError, MediaError) as error:
            return {"missing": str(error)}
        if len(clip.frames) != prompt["frames"]:
            return {"missing": f"the file gives {len(clip.frames)} frames now, it gave {prompt['frames']}"}
        return _strip(clip.frames, clip.indices.tolist(), np.round(clip.timestamps, 2).tolist())


@contextmanager
def open_frames(run: Run, media_root: Path | None) -> Iterator[Frames]:
    """Reads from the run's cache of decoded media where it still is, else from the files."""
    root = media_root or Path(run.setting("data.media_root", "."))
    cache = run.setting("data.cache", None)
    try:
        frame_budget = FrameBudget(**run.setting("data.frames", {}))
        image_budget = ImageBudget(**run.setting("data.images", {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path / ENVIRONMENT}: data.frames or data.images: {error}") from None
    with MediaReader() as reader:
        media = CachedMedia(cache, reader) if cache and Path(cache).is_dir() else reader
        yield Frames(media, root, frame_budget, image_budget)


def _strip(frames: np.ndarray, indices: list[int], seconds: list[float]) -> dict[str, Any]:
    from PIL import Image

    count, height, width, _ = frames.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width), WIDEST / (count * width))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    strip = Image.new("RGB", (count * width, height))
    for number, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS), (number * width, 0))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=QUALITY, method=4)
    webp = base64.b64encode(file.getvalue()).decode("ascii")
    return {
        "webp": webp,
        "count": count,
        "width": width,
        "height": height,
        "indices": indices,
        "seconds": seconds,
    }
