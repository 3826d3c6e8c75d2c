"""`MediaReader`: pixels from files, decoded where a bad file can do no harm.

Run as a module, this is the process that decodes; it imports numpy, Pillow and the video readers only.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vr1_jax.media.frames import FrameBudget, ImageBudget
from vr1_jax.media.images import read_image
from vr1_jax.media.isolation import IsolatedProcess, serve
from vr1_jax.media.video import Clip, clip_of_folder, read_clip

DEADLINE_SECONDS = 120.0
MEMORY_BYTES = 8 << 30
FOLDER_FPS = 3.0  # MVBench's folders (TVQA) hold three frames per second


class MediaReader:
    """Reads clips and images in a child process of its own; safe to share between threads, and to pickle.

        with MediaReader() as media:
            clip = media.video("clip.mp4", TRAINING_BUDGET)

    Every method raises MediaError for a file that cannot be read, within `deadline` seconds.
    """

    def __init__(self, deadline: float = DEADLINE_SECONDS, memory_bytes: int = MEMORY_BYTES, unit: int = 28):
        self.deadline, self.memory_bytes, self.unit = deadline, memory_bytes, unit
        self._process = IsolatedProcess(__name__, deadline, memory_bytes)

    def __reduce__(self):
        return type(self), (self.deadline, self.memory_bytes, self.unit)

    def __enter__(self) -> "MediaReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the child process; a later call starts another."""
        self._process.close()

    def video(self, path: str | Path, budget: FrameBudget) -> Clip:
        """Frames sampled from a video file by its timestamps, resized."""
        return _clip(*self._call("video", path, budget))

    def frame_folder(self, path: str | Path, budget: FrameBudget, fps: float = FOLDER_FPS) -> Clip:
        """Frames sampled from a folder of pictures taken `fps` times a second, resized."""
        return _clip(*self._call("frame_folder", path, budget, fps=fps))

    def image(self, path: str | Path, budget: ImageBudget) -> UInt8[np.ndarray, "height width 3"]:
        """An image in RGB, resized."""
        return self._call("image", path, budget)[1][0]

    def _call(self, kind, path, budget, **settings):
        request = {"kind": kind, "path": str(path), "budget": dataclasses.asdict(budget), "unit": self.unit}
        return self._process.call(str(path), request | settings)


def _clip(result: dict, arrays: list[np.ndarray]) -> Clip:
    frames, indices, timestamps = arrays
    return Clip(frames=frames, indices=indices, timestamps=timestamps, **result)


def decode(request: dict) -> tuple[dict, list[np.ndarray]]:
    """Answer one of MediaReader's requests in this process."""
    kind, path, unit = request["kind"], request["path"], request["unit"]
    if kind == "image":
        return {}, [read_image(path, ImageBudget(**request["budget"]), unit)]
    budget = FrameBudget(**request["budget"])
    if kind == "video":
        clip = read_clip(path, budget, unit)
    else:
        clip = clip_of_folder(path, budget, request["fps"], unit)
    result = {field.name: getattr(clip, field.name) for field in dataclasses.fields(Clip)}
    arrays = [result.pop(name) for name in ("frames", "indices", "timestamps")]
    return result, arrays


def _import_decoders() -> None:
    """Pay for the imports once, before the first deadline starts, and keep the libraries quiet."""
    import av
    import decord
    from PIL import Image

    Image.init()
    av.logging.set_level(None)
    decord.logging.set_level(decord.logging.QUIET)


if __name__ == "__main__":
    _import_decoders()
    serve(decode)
