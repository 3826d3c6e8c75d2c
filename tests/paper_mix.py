"""Records and media like Video-R1-260k's: its kinds and domains as published, sizes as its sources have them.

Of 262,000 records 116,000 are videos; images are general 15, charts 21, OCR 16, mathematics 37, knowledge 37 and
spatial 20 thousand. The sizes of files are not published: these are the usual ones of the collections it names.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

VIDEO_SHARE = 116 / 262
DOMAINS = {"general": 15, "chart": 21, "OCR": 16, "math": 37, "knowledge": 37, "spatial": 20}
# Width, height, parts of the whole. Small and square ones are those that grow most.
VIDEO_SIZES = (
    *(
        (1280, 720, 25),
        (640, 360, 24),
        (1920, 1080, 8),
        (854, 480, 5),
        (480, 320, 11),
        (640, 480, 6),
        (320, 240, 4),
    ),
    *((480, 360, 4), (340, 256, 2), (256, 256, 1), (224, 224, 1), (320, 180, 1), (360, 480, 3), (720, 1280, 2)),
    *((640, 640, 1), (1280, 536, 1), (176, 144, 1)),
)
WIDE = (2540, 20)  # accepted, and the shape that grows most
IMAGE_SIZES = {
    "general": (640, 480),
    "chart": (800, 600),
    "OCR": (800, 1000),
    "math": (400, 300),
    "knowledge": (500, 350),
    "spatial": (480, 320),
}
TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
SOLUTIONS = dict(zip(TYPES, ("A", "12", "EXIT", "a red ball", "3.5"), strict=True))
QUESTION = "which of the objects moves first when the small red sphere enters from left and what color has it then"
WORDS = QUESTION.split()


def write_paper_mix(out: Path, records: int, seed: int = 0) -> Path:
    """A file of records with reasoning; media beside it. One video is very wide, one image question very long."""
    rng = np.random.default_rng(seed)
    (out / "media").mkdir(parents=True)
    videos = round(records * VIDEO_SHARE)
    chances = np.array([part for *_, part in VIDEO_SIZES], float)
    content = []
    for number in range(records):
        if number < videos:
            # Each size at least once, as far as there are records.
            chosen = (
                number if number < len(VIDEO_SIZES) else rng.choice(len(VIDEO_SIZES), p=chances / chances.sum())
            )
            width, height = WIDE if number == videos - 1 else VIDEO_SIZES[chosen][:2]
            seconds = 5 if (width, height) == (480, 320) else int(np.clip(np.exp(rng.normal(2.9, 0.8)), 1, 30))
            path, kind, domain = f"{width}x{height}_{seconds}.mp4", "video", "LLaVA-Video-178K"
            if not (out / "media" / path).exists():
                _write_video(out / "media" / path, width, height, 2 * seconds)
        else:
            parts = np.array(list(DOMAINS.values()), float)
            domain = list(DOMAINS)[rng.choice(len(DOMAINS), p=parts / parts.sum())]
            scale, aspect = np.exp(rng.normal(0, (0.5, 0.35)))
            width, height = (
                max(28, int(x)) for x in np.array(IMAGE_SIZES[domain]) * scale * (aspect**0.5, aspect**-0.5)
            )
            path, kind = f"{number}.png", "image"
            Image.new("RGB", (width, height), tuple(rng.integers(0, 256, 3).tolist())).save(out / "media" / path)
        kind_of_problem = TYPES[number % len(TYPES)]
        words = 350 if number == records - 1 else int(rng.integers(8, 60))
        content.append(
            {
                "problem_id": number,
                "problem": " ".join(rng.choice(WORDS, words)) + "?",
                "data_type": kind,
                "problem_type": kind_of_problem,
                "options": ["A. left", "B. right"] if kind_of_problem == "multiple choice" else [],
                "process": "<think>" + " ".join(rng.choice(WORDS, int(rng.integers(10, 60)))) + "</think>",
                "solution": f"<answer>{SOLUTIONS[kind_of_problem]}</answer>",
                "path": f"./{path}",
                "data_source": domain,
            }
        )
    order = rng.permutation(records)
    path = out / "records.json"
    path.write_text(json.dumps([content[number] for number in order]))
    return path


def _write_video(path: Path, width: int, height: int, frames: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for shade in np.linspace(0, 255, frames, dtype=np.uint8):
            pixels = np.full((height, width, 3), shade)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
