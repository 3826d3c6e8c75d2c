"""`Prober`: how large a file's frames will be, from its headers, without decoding a frame.

Run as a module, this is the process that reads headers; a file that hangs or crashes a reader costs one record.
"""

import dataclasses
from pathlib import Path

from vr1_jax.media.frames import (
    FrameBudget,
    ImageBudget,
    MediaError,
    VisualGeometry,
    frame_size,
    smart_nframes,
    smart_resize,
)
from vr1_jax.media.images import PILLOW_FAILURES, read_frame_folder, require_file, target_size
from vr1_jax.media.isolation import IsolatedProcess, serve
from vr1_jax.media.reader import FOLDER_FPS

DEADLINE_SECONDS = 30.0
MEMORY_BYTES = 4 << 30


class Prober:
    """Asks a child process for the (frames, height, width) that decoding would give. Use it in a `with`."""

    def __init__(self, unit: int = 28):
        self.unit = unit
        self._process = IsolatedProcess(__name__, DEADLINE_SECONDS, MEMORY_BYTES)

    def __call__(self, kind: str, path: str | Path, budget: FrameBudget | ImageBudget) -> tuple[int, int, int]:
        """`kind` is image, video or frames. A turned video may have height and width exchanged."""
        request = {"kind": kind, "path": str(path), "budget": dataclasses.asdict(budget), "unit": self.unit}
        return tuple(self._process.call(str(path), request)[0]["shape"])

    def __enter__(self) -> "Prober":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


def grid(shape: tuple[int, int, int], geometry: VisualGeometry) -> tuple[int, int, int]:
    """(slices, patch rows, patch columns) of frames."""
    frames, height, width = shape
    return -(-frames // geometry.temporal), height // geometry.patch, width // geometry.patch


def measure(request: dict) -> tuple[dict, list]:
    """Answer one of Prober's requests in this process."""
    kind, path, unit = request["kind"], request["path"], request["unit"]
    if kind == "image":
        budget = ImageBudget(**request["budget"])
        size = target_size(
            path, _image_size(path), lambda h, w: smart_resize(h, w, budget.min_pixels, budget.max_pixels, unit)
        )
        return {"shape": [1, *size]}, []
    budget = FrameBudget(**request["budget"])
    if kind == "frames":
        return {"shape": read_frame_folder(path, budget, FOLDER_FPS, unit)[0].shape[:3]}, []
    from vr1_jax.media.container import list_packets

    require_file(path)
    listing = list_packets(path)
    total = len(listing.pts)
    if not total:
        raise MediaError(path, "undecodable", "its packets do not tell its frames")
    count = smart_nframes(total, listing.fps, budget)
    size = target_size(path, _video_size(path), lambda h, w: frame_size(h, w, count, budget, unit))
    return {"shape": [count, *size]}, []


def _image_size(path) -> tuple[int, int]:
    from PIL import Image

    require_file(path)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (*PILLOW_FAILURES, Image.DecompressionBombError) as error:
        raise MediaError(path, "undecodable", f"not a readable image: {error}") from error


def _video_size(path) -> tuple[int, int]:
    from vr1_jax.media.container import open_container, video_stream

    with open_container(path) as container:
        context = video_stream(path, container).codec_context
        return context.height, context.width


if __name__ == "__main__":
    serve(measure)
