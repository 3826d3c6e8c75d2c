"""What the page shows of a step: its questions, the text that each token added to an answer, and the frames."""

import base64
import functools
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from vr1_jax.data.records import RecordError, resolve_media
from vr1_jax.errors import UserError
from vr1_jax.media.cache import CachedMedia
from vr1_jax.media.frames import FrameBudget, ImageBudget, MediaError
from vr1_jax.media.reader import MediaReader
from vr1_jax.tools.report.run_files import ENVIRONMENT, Run

LONGEST_SIDE = 112  # pixels of a thumbnail; frames are never enlarged
WIDEST = 16_383  # pixels of a WebP picture
QUALITY = 55


def share_correct(prompt: dict[str, Any], threshold: float) -> list[float | None]:
    """The share of correct answers with ordered frames, and with shuffled ones if there are."""
    correct = [np.asarray(group["accuracy"]) > threshold for group in prompt["groups"][:2]]
    return [*(round(float(group.mean()), 3) for group in correct), None][:2]


def show_prompt(prompt: dict[str, Any], texts: "TokenTexts | None", run: Run) -> dict[str, Any]:
    """All that can be seen of one prompt of a step, but its frames."""
    copied = ("problem", "problem_type", "options", "solution", "data_type", "path", "file", "index", "attempt")
    page = {name: prompt.get(name) for name in copied}
    page["order"] = frame_order(prompt)
    threshold, placement = run.setting("grpo.threshold", 0.5), run.setting("grpo.placement", "reward")
    page["groups"] = [
        [_answer(group, n, texts, threshold) for n in range(len(group["texts"]))] for group in prompt["groups"]
    ]
    added_to_reward = ["length", "overlong", *(["temporal"] if placement == "reward" else [])]
    for n, answer in enumerate(page["groups"][0]):
        answer["reward"], answer["advantage"] = prompt["rewards"][n], prompt["advantages"][n]
        bonuses = {name: table[n] for name, table in prompt["bonuses"].items()}
        answer["parts"] |= {f"{name} bonus": bonuses[name] for name in added_to_reward if name in bonuses}
        if placement == "advantage":
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
        self._text = functools.cache(lambda *tokens: self._tokenizer.decode(tokens))

    def pieces(self, tokens: Sequence[int]) -> list[str | list[str]]:
        """One piece for each token, in a list of its own if it is a special token.

        The others join to the decoded text. The first tokens of a character that spans several are empty.
        """
        pieces: list[str | list[str]] = []
        begun: list[int] = []  # tokens of a character that may go on
        plain = -1  # the last piece of text
        for token in tokens:
            if token in self._special:
                pieces.append([self._special[token]])
                continue
            plain = len(pieces)
            begun.append(token)
            text = self._text(*begun)
            pieces.append("" if text.endswith("\N{REPLACEMENT CHARACTER}") else text)
            if pieces[plain]:
                begun = []
        if begun:
            pieces[plain] += self._text(*begun)
        return pieces


class Clips:
    """Strips of thumbnails. Each clip is decoded and kept once; what cannot be read has its reason instead.

    Media are read from the run's cache of decoded ones where it still is, else from their files.
    """

    def __init__(self, run: Run, root: Path | None, reader: MediaReader):
        self._root = root or Path(run.setting("data.media_root", "."))
        cache = run.setting("data.cache", None)
        self._media = CachedMedia(cache, reader) if cache and Path(cache).is_dir() else reader
        try:
            self._frames = FrameBudget(**run.setting("data.frames", {}))
            self._images = ImageBudget(**run.setting("data.images", {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"{run.path / ENVIRONMENT}: data.frames or data.images: {error}") from None
        self.strips: list[str] = []
        self._seen: dict[tuple[str, str], dict[str, Any]] = {}

    def show(self, prompt: dict[str, Any]) -> dict[str, Any] | None:
        """{"strip": number} or {"missing": why}; None for a question about text."""
        if prompt["data_type"] == "text":
            return None
        clip = (prompt["data_type"], prompt["path"])
        if clip not in self._seen:
            try:
                strip = self._strip(prompt)
            except (RecordError, MediaError) as error:
                self._seen[clip] = {"missing": str(error)}
            else:
                self._seen[clip] = {"strip": len(self.strips)}
                self.strips.append(json.dumps(strip))
        return self._seen[clip]

    def note(self) -> list[str]:
        missing = [clip["missing"] for clip in self._seen.values() if "missing" in clip]
        what = f"frames of {len(missing)} of {len(self._seen)} clips cannot be shown"
        return [f"{what}: {missing[0]}"] if missing else []

    def _strip(self, prompt: dict[str, Any]) -> dict[str, Any]:
        kind = prompt["data_type"]
        path = resolve_media(self._root, prompt["path"], folder=kind == "frames")
        if kind == "image":
            return _strip(self._media.image(path, self._images)[None], [], [])
        clip = (self._media.frame_folder if kind == "frames" else self._media.video)(path, self._frames)
        if (count := len(clip.frames)) != prompt["frames"]:
            raise MediaError(path, "changed", f"the file gives {count} frames now, it gave {prompt['frames']}")
        return _strip(clip.frames, clip.indices.tolist(), np.round(clip.timestamps, 2).tolist())


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
