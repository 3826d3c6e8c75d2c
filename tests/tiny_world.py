"""Small records with real media, for tests of the pipeline; nothing of the checkout's surroundings is needed."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vr1_jax.data.collate import Bucket, PromptLayout
from vr1_jax.data.encode import Encoder
from vr1_jax.data.pipeline import Batching
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.sources import Source
from vr1_jax.media.frames import FrameBudget, ImageBudget

PIXELS = 56 * 56
FRAMES = FrameBudget(min_pixels=PIXELS, max_pixels=PIXELS)
IMAGES = ImageBudget(PIXELS, PIXELS)
BUCKETS = {"video": (Bucket(4, 16, 256),), "image": (Bucket(1, 16, 256),)}


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels.repeat(14, 0).repeat(14, 1)).save(path)


def write_video(path: Path, seed: int, frames: int = 8) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast", "threads": "1"})
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            pixels = np.full((56, 56, 3), rng.integers(0, 256, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def record(number: int, kind: str, path: str) -> dict:
    return {
        "problem_id": number,
        "problem": f"What is in number {number}?",
        "data_type": kind,
        "problem_type": "free-form",
        "options": [],
        "process": "<think>I look.</think>",
        "solution": f"<answer>{number}</answer>",
        "path": path,
        "data_source": "test",
    }


def write_records(path: Path, records: list) -> RecordFile:
    path.write_text(json.dumps(records))
    return RecordFile(path)


def write_source(directory: Path, images: int, videos: int, bad_share: float = 0.0, files: int = 10) -> Source:
    """Records that share `files` files of each kind; a share of them name damaged or missing ones instead."""
    media = directory / "media"
    for number in range(files):
        write_image(media / f"{number}.png", number)
        if videos:
            write_video(media / f"{number}.mp4", number)
    for name in ("bad.png", "bad.mp4"):
        (media / name).write_bytes(b"\x89PNG\r\n\x1a\n nothing of the kind")
    rng, records = np.random.default_rng(7), []
    for number, is_image in enumerate(rng.permutation([True] * images + [False] * videos)):
        kind, suffix = ("image", "png") if is_image else ("video", "mp4")
        name = str(rng.integers(files))
        if rng.random() < bad_share:
            name = "bad" if rng.random() < 0.7 else "missing"
        records.append(record(number, kind, f"./{name}.{suffix}"))
    return Source(write_records(directory / "records.json", records), media)


def layout_of(tokenizer) -> PromptLayout:
    return PromptLayout(visual_tokens=(tokenizer.image_token, tokenizer.video_token), tokens_per_second=2.0)


def encoder_of(tokenizer, **settings) -> Encoder:
    return Encoder(tokenizer, FRAMES, IMAGES, **settings)


def batching(rows: int, **settings) -> Batching:
    return Batching(rows, **{"buckets": BUCKETS, "seed": 3} | settings)
