"""Log-probs of given answers: a file of records with completions to a stream of scored lines."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vr1_jax.data.ahead import read_ahead
from vr1_jax.data.collate import EncodedPrompt
from vr1_jax.data.prompts import encode_completion
from vr1_jax.data.record_file import UTF8_BOM, RecordFile
from vr1_jax.data.records import RecordError, Sample, parse_record
from vr1_jax.evaluation.batching import Batcher, Shape, Size
from vr1_jax.evaluation.chat import ChatModel
from vr1_jax.media.frames import MediaError
from vr1_jax.media.reader import MediaReader
from vr1_jax.rl.logprobs import score_completions
from vr1_jax.sampling.sampler import place_prompt

# Lines encoded before they are sorted into batches: enough to find neighbours of similar size.
CHUNK_LINES, CHUNK_BYTES = 64, 512 << 20
Read = Callable[[], object]  # a record as JSON decodes it, or RecordError


@dataclass(frozen=True)
class Answered:
    """A prompt, and the tokens of the answer whose log-probs are wanted."""

    prompt: EncodedPrompt
    answer: tuple[int, ...]

    @property
    def size(self) -> Size:
        return Size(self.prompt.bucket, len(self.answer))


@dataclass(frozen=True)
class Line:
    """One line of the input, encoded or refused."""

    index: int
    item: Answered | None
    error: str | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.item is None else sum(patches.nbytes for patches in self.item.prompt.patches)


def score_file(chat: ChatModel, records: Path, media_root: Path) -> Iterator[dict[str, Any]]:
    """One result for each record, in order; what cannot be scored says why."""
    encoder = chat.encoder
    # The first call sets the tokenizer's options, which must not happen while a thread is using it.
    chat.tokenizer.encode_text("")

    def encode(record: tuple[int, Read], reader: MediaReader) -> Line:
        index, read = record
        try:
            sample = parse_record(read(), index=index, file=str(records))
            answer = encode_completion(_completion(sample), chat.tokenizer)
            return Line(index, Answered(encoder(sample, reader, media_root).prompt, tuple(answer)))
        except (RecordError, MediaError) as error:
            return Line(index, None, " ".join(str(error).split()))

    batcher = Batcher()
    for chunk in _chunks(read_ahead(encode, read_records(records), encoder.geometry.unit)):
        yield from _score(chat, chunk, batcher)


def read_records(path: Path) -> Iterator[tuple[int, Read]]:
    """Numbers from 0, and what decodes the record: of a JSON list, or of JSON lines with something in them.

    A broken line costs itself only, so lines are not indexed; a list with a broken outline is refused.
    """
    with path.open("rb") as file:
        if file.read(4096).removeprefix(UTF8_BOM).lstrip().startswith(b"["):
            listed = RecordFile(path)
            yield from ((index, functools.partial(listed.raw, index)) for index in range(len(listed)))
            return
        file.seek(0)
        for index, line in enumerate(file):
            text = line.removeprefix(UTF8_BOM) if index == 0 else line
            if text.strip():
                yield index, functools.partial(_parse_json, text)


def _parse_json(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 100,000 deep
        raise RecordError(f"the line is not JSON: {error}") from None


def _completion(sample: Sample) -> str:
    completion = sample.extras.get("completion")
    if not isinstance(completion, str):
        sample.refuse("is missing" if completion is None else "is not text", "completion")
    try:
        completion.encode()
    except UnicodeEncodeError:
        sample.refuse("holds half a surrogate pair, which is not valid text", "completion")
    return completion


def _chunks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == CHUNK_LINES or sum(line.bytes for line in chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _score(chat: ChatModel, chunk: list[Line], batcher: Batcher) -> Iterator[dict[str, Any]]:
    good = [line for line in chunk if line.item is not None]
    found = {good[n].index: logps for n, logps in answer_logps(chat, [line.item for line in good], batcher)}
    for line in chunk:
        if line.item is None:
            yield _result(line.index, error=line.error)
        elif not np.isfinite(found[line.index]).all():
            yield _result(line.index, error="the model's log-probs are not finite numbers")
        else:
            yield _result(line.index, line.item, found[line.index].tolist())


def _result(
    index: int, item: Answered | None = None, logps: Sequence[float] = (), error: str | None = None
) -> dict[str, Any]:
    return {
        "index": index,
        "prompt_tokens": 0 if item is None else len(item.prompt.tokens),
        "token_ids": [] if item is None else list(item.answer),
        "logprobs": list(logps),
        "error": error,
    }


def answer_logps(chat: ChatModel, items: list[Answered], batcher: Batcher) -> Iterable[tuple[int, np.ndarray]]:
    """(index into `items`, natural log-probs of its answer), each once, in the order that they are computed."""
    for indices, shape in batcher.batches([item.size for item in items]):
        yield from zip(indices, _batch_logps(chat, [items[i] for i in indices], shape), strict=True)


def _batch_logps(chat: ChatModel, items: list[Answered], shape: Shape) -> Iterator[np.ndarray]:
    rows = items + items[-1:] * (shape.rows - len(items))
    arrays = chat.arrays([item.prompt for item in rows], shape.size.bucket)
    tokens = np.full((shape.rows, 1, shape.size.answer), chat.tokenizer.pad_token, np.int32)
    for row, item in enumerate(items):
        tokens[row, 0, : len(item.answer)] = item.answer
    with chat.computing():
        logps = np.asarray(_logps(chat.model, place_prompt(arrays, chat.mesh), jnp.asarray(tokens)))
    return (logps[row, 0, : len(item.answer)] for row, item in enumerate(items))


@jax.jit
def _logps(model, prompt, tokens):
    return score_completions(model, prompt, tokens).logps
