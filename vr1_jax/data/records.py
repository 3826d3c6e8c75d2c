"""Records of Video-R1's training and evaluation files, parsed by explicit rules.

A record that breaks a rule is refused with a `RecordError` that names file, record and field; nothing is
guessed. The rules:

    problem       text, not blank. null is refused.
    data_type     image | video | frame (a folder of frames, read as a video) | text (no media).
    problem_type  multiple choice | numerical | OCR | free-form | regression. Others are refused by name.
    options       list of texts; null or absent means none. Multiple choice needs at least one.
    solution      "<answer>..</answer>". Text without any tag is taken as the answer and wrapped; an empty
                  answer, or one tag without the other, is refused.
    process       "<think>..</think>"; null, absent or blank means none. Text without any tag is wrapped.
    path          relative to the media root, needed unless data_type is text (see `check_path`).
    problem_id    integer or text; a float only when it is whole (3.0 becomes 3); null or absent means none.
    data_source   text; null or absent means "".
    pass_rate     share of a model's answers that were right, in 0..1; null or absent means unknown.

Every other field (`original_question_type`, `completion`, ..) is kept in `Sample.extras`. A key that
occurs twice has its last value, as everywhere in Python. Text that UTF-8 cannot encode (a lone surrogate)
is refused.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from vr1_jax.errors import UserError

DATA_TYPES = {"image": "image", "video": "video", "frame": "frames", "text": "text"}
PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
KNOWN_FIELDS = frozenset(
    (
        "problem_id",
        "problem",
        "data_type",
        "problem_type",
        "options",
        "solution",
        "process",
        "path",
        "data_source",
        "pass_rate",
    )
)


class RecordError(UserError):
    """A record, its media path or its file cannot be used; the message says which, where and why."""

    def __init__(self, reason: str, field: str | None = None, index: int | None = None, file: str | None = None):
        super().__init__(reason, field, index, file)  # positional, so that it survives pickling by a worker
        self.reason, self.field, self.index, self.file = reason, field, index, file

    def __str__(self) -> str:
        place = (
            self.file,
            None if self.index is None else f"record {self.index}",
            None if self.field is None else f"field '{self.field}'",
        )
        return ": ".join(part for part in (*place, self.reason) if part)


@dataclass(frozen=True)
class Sample:
    """One question about an image, a video or nothing but text, with its right answer."""

    index: int  # place in its file, from 0
    problem_id: int | str | None
    problem: str
    data_type: Literal["image", "video", "frames", "text"]
    problem_type: str
    options: tuple[str, ...]
    answer: str  # between the tags of `solution`, stripped
    solution: str  # always holds "<answer>..</answer>"
    path: str | None  # relative to the media root, with forward slashes
    data_source: str = ""
    pass_rate: float | None = None
    process: str | None = None  # "<think>..</think>"
    extras: Mapping[str, Any] = field(default_factory=dict, hash=False)
    file: str = ""

    @property
    def is_video(self) -> bool:
        return self.data_type in ("video", "frames")

    def refuse(self, reason: str, field: str | None = None) -> NoReturn:
        """Raises the error that names this sample; for trouble found after parsing."""
        raise RecordError(reason, field, self.index, self.file)

    def media(self, root: str | os.PathLike) -> Path:
        """The sample's image, video or frame folder under the media root."""
        if self.path is None:
            self.refuse("a text record has no media", "path")
        try:
            return resolve_media(root, self.path, folder=self.data_type == "frames")
        except RecordError as error:
            self.refuse(error.reason, "path")


def parse_record(record: object, *, index: int, file: str = "") -> Sample:
    """Applies the rules of this module's head to one decoded JSON value."""
    if not isinstance(record, dict):
        raise RecordError(f"is a JSON {_json_type(record)}, not an object", None, index, file)
    try:
        return _parse(record, index, file)
    except RecordError as error:
        raise RecordError(error.reason, error.field, index, file) from None


def _parse(record: dict, index: int, file: str) -> Sample:
    problem = _required_text(record, "problem")
    data_type = DATA_TYPES[_one_of(record, "data_type", DATA_TYPES)]
    problem_type = _one_of(record, "problem_type", PROBLEM_TYPES)
    options = _options(record)
    if problem_type == "multiple choice" and not options:
        raise RecordError("is empty, but the problem is multiple choice", "options")
    solution, answer = _tagged("answer", _required_text(record, "solution"), "solution")
    process = _optional_text(record, "process").strip()
    return Sample(
        index=index,
        problem_id=_problem_id(record),
        problem=problem,
        data_type=data_type,
        problem_type=problem_type,
        options=options,
        answer=answer,
        solution=solution,
        path=_path(record, data_type),
        data_source=_optional_text(record, "data_source"),
        pass_rate=_pass_rate(record),
        process=_tagged("think", process, "process")[0] if process else None,
        extras={name: value for name, value in record.items() if name not in KNOWN_FIELDS},
        file=file,
    )


def _required_text(record: dict, name: str) -> str:
    if name not in record:
        raise RecordError("is missing", name)
    text = _text(record[name], name)
    if not text.strip():
        raise RecordError("is empty", name)
    return text


def _optional_text(record: dict, name: str) -> str:
    value = record.get(name)
    return "" if value is None else _text(value, name)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"is {_json_type(value)}, not text", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError("holds half a surrogate pair, which is not valid text", name) from None
    return value


def _one_of(record: dict, name: str, allowed) -> str:
    value = _required_text(record, name)
    if value not in allowed:
        raise RecordError(f"is {value[:40]!r}, not one of {', '.join(allowed)}", name)
    return value


def _options(record: dict) -> tuple[str, ...]:
    value = record.get("options")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RecordError(f"is {_json_type(value)}, not a list", "options")
    return tuple(_text(option, "options") for option in value)


def _problem_id(record: dict) -> int | str | None:
    value = record.get("problem_id")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str):
        return _text(value, "problem_id")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise RecordError(f"is {value!r:.40}, neither a whole number nor text", "problem_id")


def _pass_rate(record: dict) -> float | None:
    value = record.get("pass_rate")
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise RecordError(f"is {value!r:.40}, not a number in 0..1", "pass_rate")


def _tagged(tag: str, text: str, name: str) -> tuple[str, str]:
    """The text with its tags, and what the first pair of them holds."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    text = text.strip()
    if opening not in text and closing not in text:
        text = f"{opening}{text}{closing}"
    start = text.find(opening)
    end = text.find(closing, start)
    if start < 0 or end < 0:
        raise RecordError(f"has one of {opening} and {closing} without the other", name)
    inner = text[start + len(opening) : end].strip()
    if not inner:
        raise RecordError(f"has nothing between {opening} and {closing}", name)
    return text, inner


def _path(record: dict, data_type: str) -> str | None:
    if data_type != "text":
        return check_path(_required_text(record, "path"))
    if _optional_text(record, "path"):
        raise RecordError("is given, but data_type is text", "path")
    return None


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


URL_OR_DRIVE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(data|file):|[A-Za-z]:[/\\]", re.IGNORECASE)


def check_path(path: str) -> str:
    """A media path in one spelling: relative, forward slashes, no "." parts.

    Backslashes separate, as on Windows. One leading slash is dropped: published evaluation files write
    "/MMVU/videos/1.mp4" and mean their media root, so a path never reaches outside it either way.
    """
    if URL_OR_DRIVE.match(path.lstrip("./\\")):
        raise RecordError(f"{path[:80]!r} is a URL or a drive; only files under the media root are read", "path")
    if "\0" in path:
        raise RecordError(f"{path[:80]!r} holds a NUL byte", "path")
    path = path.replace("\\", "/")
    if path.startswith("//"):
        raise RecordError(f"{path[:80]!r} is a network path; only files under the media root are read", "path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise RecordError(f"{path[:80]!r} climbs out with '..'", "path")
    if not parts:
        raise RecordError(f"{path[:80]!r} names no file", "path")
    return "/".join(parts)


def resolve_media(root: str | os.PathLike, path: str, *, folder: bool = False) -> Path:
    """The existing regular file (or folder) under `root`, symlinks followed and still inside it."""
    relative = check_path(path)
    try:
        inside = Path(os.path.realpath(root, strict=True))
    except OSError as error:
        raise RecordError(f"media root {os.fspath(root)!r}: {error.strerror}") from None
    try:
        found = Path(os.path.realpath(inside / relative, strict=True))
        mode = found.stat().st_mode
    except OSError as error:
        raise RecordError(f"{relative!r} under {str(inside)!r}: {error.strerror}", "path") from None
    if not found.is_relative_to(inside):
        raise RecordError(f"{relative!r} leaves the media root through a symlink", "path")
    # A pipe or device would block or never end when read.
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise RecordError(f"{relative!r} is not a {'folder of frames' if folder else 'regular file'}", "path")
    return found
