"""What the page shows of a step: its questions, the text that each token added to an answer, and the frames."""

import base64
import codecs
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from vr1_jax.data.encode import Media
from vr1_jax.data.records import RecordError, resolve_media
from vr1_jax.errors import UserError
from vr1_jax.media.cache import CachedMedia
from vr1_jax.media.frames import FrameBudget, ImageBudget, MediaError
from vr1_jax.media.reader import MediaReader
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.tools.report.run_files import ENVIRONMENT, Run

LONGEST_SIDE = 112  # pixels of a thumbnail; frames are never enlarged
WIDEST = 16_383  # pixels of a WebP picture
QUALITY = 55

Prompts = list[dict[str, Any]]


def share_correct(prompts: Prompts, threshold: float) -> list[list[float | None]]:
    """For each prompt the share of correct answers with ordered frames, and with shuffled ones if there are."""
    found = []
    for prompt in prompts:
        correct = [np.asarray(group["accuracy"]) > threshold for group in prompt["groups"][:2]]
        row = [round(float(group.mean()), 3) for group in correct]
        found.append([*row, *[None] * (2 - len(row))])
    return found


def share_distinct(prompts: Prompts) -> float:
    """The share of a group's answers that are left without those that repeat another word by word."""
    ordered = [prompt["groups"][0]["texts"] for prompt in prompts]
    return float(np.mean([len(set(texts)) / len(texts) for texts in ordered]))


def show_prompt(prompt: dict[str, Any], texts: "TokenTexts | None", algorithm: GRPOConfig) -> dict[str, Any]:
    """All that can be seen of one prompt of a step, but its frames."""
    copied = ("problem", "problem_type", "options", "solution", "data_type", "path", "file", "index", "attempt")
    page = {name: prompt.get(name) for name in copied}
    page["order"] = frame_order(prompt)
    page["groups"] = [
        [_answer(group, n, texts, algorithm.threshold) for n in range(len(group["texts"]))]
        for group in prompt["groups"]
    ]
    added_to_reward = ["length", "overlong", *(["temporal"] if algorithm.placement == "reward" else [])]
    for n, answer in enumerate(page["groups"][0]):
        answer["reward"], answer["advantage"] = prompt["rewards"][n], prompt["advantages"][n]
        bonuses = {name: table[n] for name, table in prompt["bonuses"].items()}
        answer["parts"] |= {f"{name} bonus": bonuses[name] for name in added_to_reward if name in bonuses}
        if algorithm.placement == "advantage":
            answer["added"] = bonuses.get("temporal", 0.0)  # to the advantage, after normalisation
    return page


def frame_order(prompt: dict[str, Any]) -> list[int] | None:
    """Which frame stands where in the shuffled clip; slices are pairs of frames."""
    order = prompt.get("order")
    if order is None or prompt.get("shuffled_by") != "slices":
        return order
    frames = [frame for part in order for frame in (2 * part, 2 * part + 1)]
    return [frame for frame in frames if frame < prompt["frames"]]


def _answer(group: dict[str, Any], n: int, texts: "TokenTexts | None", threshold: float) -> dict[str, Any]:
    text, logps = group["texts"][n], group["logps"][n]
    pieces = texts.pieces(group["tokens"][n]) if texts else None
    if pieces is None or "".join(piece for piece in pieces if isinstance(piece, str)) != text:
        pieces, logps = [text], [None]  # nothing to align the colours with
    return {
        "pieces": pieces,
        "logps": [round(logp, 2) if logp is not None and math.isfinite(logp) else None for logp in logps],
        "tokens": len(group["tokens"][n]),
        "stopped": group["stopped"][n],
        "correct": group["accuracy"][n] > threshold,
        "parts": {
            "accuracy": group["accuracy"][n],
            "format": group["format"][n],
            **{name: table[n] for name, table in group["extra"].items()},
        },
    }


def spread_out(items: Sequence[int]) -> list[int]:
    """The items in such an order that the first ones, however many, are spread over all; both ends come first."""
    bits = len(items).bit_length()
    order = sorted(range(len(items)), key=lambda n: f"{n:0{bits}b}"[::-1])
    if len(order) > 1:
        order.insert(1, order.pop(order.index(len(items) - 1)))
    return [items[n] for n in order]


class TokenTexts:
    """The tokens of a byte-level tokenizer as text; a character may need several tokens."""

    def __init__(self, tokenizer: Path):
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token: item.content for token, item in added.items() if item.special}
        self._bytes: dict[int, bytes] = {}

    def pieces(self, tokens: Sequence[int]) -> list[str | list[str]]:
        """One piece for each token, in a list of its own if it is a special token.

        The others join to the decoded text. The first tokens of a character that spans several are empty.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str | list[str]] = []
        plain = -1  # the last piece of text
        for token in tokens:
            if token in self._special:
                pieces.append([self._special[token]])
            else:
                plain = len(pieces)
                pieces.append(decoder.decode(self._as_bytes(token)))
        if plain >= 0:
            pieces[plain] += decoder.decode(b"", final=True)
        return pieces

    def _as_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            name = self._tokenizer.id_to_token(token) or ""
            try:
                self._bytes[token] = bytes(_BYTES[character] for character in name)
            except KeyError:  # an added token stands for itself
                self._bytes[token] = name.encode()
        return self._bytes[token]


def _byte_names() -> dict[str, int]:
    """The character that stands for each byte in the vocabulary: itself if visible, else one from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTES = _byte_names()


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
    count, height, width, _ = frames.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width), WIDEST / (count * width))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    strip = Image.new("RGB", (count * width, height))
    for number, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS), (number * width, 0))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=QUALITY, method=4)
    webp = base64.b64encode(file.getvalue()).decode("ascii")
    return {"webp": webp, "count": count, "width": width, "height": height, "indices": indices, "seconds": seconds}
