"""A file of records, indexed by byte offsets: one record is parsed when it is asked for.

The index of 263,000 records is 4 MB of integers, however large the file; building it checks the file's
outline (every record opens and closes, commas between, nothing after) and leaves each record's content
to `parse_record`. A JSON list and JSON lines are told apart by the first character.
"""

import json
import mmap
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

from vr1_jax.data.records import RecordError, Sample, parse_record

UTF8_BOM = b"\xef\xbb\xbf"
SPACE = re.compile(rb"[ \t\r\n]*+")
# One match consumes a whole object without inner objects, which is what nearly all records are.
FLAT_OBJECT = re.compile(rb'\{(?:[^"{}]++|"(?:[^"\\]++|\\.)*+")*+\}', re.DOTALL)
BRACE_OR_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}]', re.DOTALL)


class RecordFile:
    """Random access to a JSON list or JSON lines; picklable, safe across forks and threads.

        samples = RecordFile("Video-R1-260k.json")
        len(samples), samples[17].problem

    A damaged outline raises `RecordError` here; a bad record raises it when that record is read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._descriptor = None
        try:
            self._size = self.path.stat().st_size
            with self.path.open("rb") as file:
                if self._size == 0:
                    raise RecordError("the file is empty", file=str(self.path))
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    self._starts, self._ends = _index(data, str(self.path))
        except OSError as error:
            raise RecordError(error.strerror, file=str(self.path)) from None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Sample:
        return parse_record(self.raw(index), index=range(len(self))[index], file=str(self.path))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def raw(self, index: int) -> object:
        """The record as JSON decodes it, unchecked."""
        index = range(len(self))[index]
        start, end = self._starts[index], self._ends[index]
        data = self._read(start, end - start)
        try:
            return json.loads(data)
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 at byte {start + error.start}"
        except json.JSONDecodeError as error:
            # The decoder counts characters of a decoded text, the file counts bytes.
            reason = f"is not JSON at byte {start + len(error.doc[: error.pos].encode())}: {error.msg}"
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 100,000 deep
            reason = f"cannot be decoded (byte {start}): {error}"
        raise RecordError(reason, index=index, file=str(self.path))

    def _read(self, start: int, length: int) -> bytes:
        # pread keeps no position, so forks and threads may share the descriptor.
        if self._descriptor is None:
            self._descriptor = _Descriptor(self.path)
        data = os.pread(self._descriptor.number, length, start)
        if len(data) != length or os.fstat(self._descriptor.number).st_size != self._size:
            raise RecordError("the file has changed since it was indexed", file=str(self.path))
        return data

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_descriptor": None}


class _Descriptor:
    """An open file, closed with its last user."""

    def __init__(self, path: Path):
        try:
            self.number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise RecordError(error.strerror, file=str(path)) from None

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


def _index(data: mmap.mmap, file: str) -> tuple[array, array]:
    """Start and end offset of every record."""
    begin = SPACE.match(data, len(UTF8_BOM) if data[:3] == UTF8_BOM else 0).end()
    first = data[begin : begin + 1]
    if first == b"[":
        return _index_list(data, begin, file)
    if first == b"{":
        return _index_lines(data, begin, file)
    raise _broken(data, begin, file, "starts neither a JSON list nor JSON lines in UTF-8")


def _index_list(data: mmap.mmap, begin: int, file: str) -> tuple[array, array]:
    starts, ends = array("q"), array("q")
    position = SPACE.match(data, begin + 1).end()
    while data[position : position + 1] != b"]" or starts:
        end = _object_end(data, position, file, len(starts))
        starts.append(position)
        ends.append(end)
        position = SPACE.match(data, end).end()
        if data[position : position + 1] != b",":
            break
        position = SPACE.match(data, position + 1).end()
    if position == len(data):
        raise _broken(data, position, file, f"the list is not closed after record {len(starts) - 1}: cut short?")
    if data[position : position + 1] != b"]":
        raise _broken(data, position, file, f"expected ',' or ']' after record {len(starts) - 1}")
    rest = SPACE.match(data, position + 1).end()
    if rest != len(data):
        raise _broken(data, rest, file, "something follows the closing ']'")
    return starts, ends


def _object_end(data: mmap.mmap, start: int, file: str, index: int) -> int:
    if data[start : start + 1] != b"{":
        missing = start == len(data)
        raise _broken(
            data, start, file, f"record {index} is {'missing: cut short?' if missing else 'not an object'}"
        )
    flat = FLAT_OBJECT.match(data, start)
    if flat:
        return flat.end()
    depth = 0
    for token in BRACE_OR_STRING.finditer(data, start):
        match token[0]:
            case b"{":
                depth += 1
            case b"}":
                depth -= 1
                if depth == 0:
                    return token.end()
            case b'"':
                break  # opens a string that never closes
    raise _broken(data, start, file, f"record {index} is not closed before the file ends: cut short?")


def _index_lines(data: mmap.mmap, begin: int, file: str) -> tuple[array, array]:
    starts, ends = array("q"), array("q")
    position = begin
    while position < len(data):
        newline = data.find(b"\n", position)
        line_end = len(data) if newline < 0 else newline
        line = data[position:line_end]
        text = line.strip(b" \t\r")
        if text:
            start = position + line.index(text[:1])
            if not (text.startswith(b"{") and text.endswith(b"}")):
                raise _broken(data, start, file, "the line is not one whole JSON object: cut short?")
            starts.append(start)
            ends.append(start + len(text))
        position = line_end + 1
    return starts, ends


def _broken(data: mmap.mmap, position: int, file: str, reason: str) -> RecordError:
    line = data[:position].count(b"\n") + 1
    return RecordError(f"byte {position} (line {line}): {reason}", file=file)
