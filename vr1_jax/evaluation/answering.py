"""Answers to the questions of a file: read ahead, batched on the device, kept in a journal, nothing done twice.

Questions are taken in chunks and batched within one. The plan of batches follows from the questions alone, so
a run that was stopped goes on with the very batches it would have had, and ends with the same answers.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.data.ahead import read_ahead
from vr1_jax.data.collate import Bucket, EncodedPrompt
from vr1_jax.data.prompts import question_text
from vr1_jax.data.quarantine import Refusal
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError, Sample
from vr1_jax.evaluation.batching import Batcher, Shape, Size
from vr1_jax.evaluation.chat import Answer, ChatModel, batch_answers
from vr1_jax.evaluation.journal import Journal
from vr1_jax.media.frames import MediaError
from vr1_jax.media.reader import MediaReader
from vr1_jax.progress import Progress
from vr1_jax.sampling.settings import SamplingConfig

# Decoded pixels of one chunk; another chunk is read ahead meanwhile.
CHUNK_BYTES, MOST_IN_CHUNK, LEAST_IN_CHUNK = 2 << 30, 256, 16


@dataclass(frozen=True)
class Question:
    """A record as it is asked, or its error. `shown` is what the model is given, in words and numbers."""

    number: int
    prompt: EncodedPrompt | None = None
    shown: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    reason: str | None = None  # of the error, one word for counting


@dataclass(frozen=True)
class Questions:
    """The records of one file, as one model is asked them."""

    records: RecordFile
    media_root: Path
    chat: ChatModel

    def ahead(self, numbers: Sequence[int], *, depth: int, workers: int | None = None) -> Iterator[Question]:
        """Questions in the order of `numbers`, up to `depth` of them read while the caller is busy."""
        # The first call sets the tokenizer's options, which must not happen while a thread is using it.
        self.chat.tokenizer.encode_text("")
        return read_ahead(self.read, numbers, self.chat.encoder.geometry.unit, depth=depth, workers=workers)

    def read(self, number: int, reader: MediaReader) -> Question:
        try:
            return self._read(number, self.records[number], reader)
        except (RecordError, MediaError) as error:
            reason = Refusal.of(error, str(self.records.path), number).reason
            return Question(number, error=" ".join(str(error).split()), reason=reason)

    def _read(self, number: int, sample: Sample, reader: MediaReader) -> Question:
        encoder = self.chat.encoder
        found = encoder(sample, reader, self.media_root)
        shown = {"prompt": question_text(sample, encoder.style), "prompt_tokens": len(found.prompt.tokens)}
        if found.view is not None:
            shown |= found.view.describe(encoder.geometry.patch)
        return Question(number, found.prompt, shown)


def shown_bucket(shown: dict[str, Any]) -> Bucket:
    """The smallest bucket of a question whose prompt is no longer at hand."""
    slices, rows, columns = shown.get("grid", (0, 0, 0))
    return Bucket(slices, rows * columns, shown["prompt_tokens"])


@dataclass
class Clock:
    """Where the seconds of a run went."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def measure(self, what: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - before

    @property
    def total(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class Asking:
    """How answers are drawn and how the work is cut."""

    sampling: SamplingConfig
    seed: int
    batcher: Batcher
    chunk: int
    workers: int | None
    n: int = 1  # answers to each question
    keep: Callable[[Sequence[Answer]], dict[str, Any]] = lambda answers: kept(answers)  # for the journal


def kept(answers: Sequence[Answer]) -> dict[str, Any]:
    if not all(np.isfinite(answer.logprobs).all() for answer in answers):
        return {"error": "the model's log-probs are not finite numbers"}
    samples = [
        {"output": answer.text, "answer_tokens": len(answer.token_ids), "stopped": answer.stopped}
        for answer in answers
    ]
    return samples[0] if len(samples) == 1 else {"samples": samples}


def chunk_size(frame_bytes: int, frames: int) -> int:
    return min(max(CHUNK_BYTES // (frame_bytes * frames), LEAST_IN_CHUNK), MOST_IN_CHUNK)


def answer_questions(
    questions: Questions, numbers: Sequence[int], asking: Asking, journal: Journal, progress: Progress
) -> Clock:
    """Puts into the journal what it does not hold yet: for each number an answer, or the error of its record."""
    work = _Work(questions, asking, journal, progress)
    progress.advance(sum(number in journal for number in numbers))
    chunks = [numbers[first : first + asking.chunk] for first in range(0, len(numbers), asking.chunk)]
    to_read = [number for chunk in chunks if work.is_open(chunk) for number in chunk]
    with contextlib.closing(questions.ahead(to_read, depth=asking.chunk, workers=asking.workers)) as ahead:
        for chunk in chunks:
            if not work.is_open(chunk):
                work.replay(chunk)
                continue
            with work.clock.measure("waiting for media"):
                asked = [next(ahead) for _ in chunk]
            work.answer_chunk(asked)
    return work.clock


@dataclass(frozen=True)
class _Work:
    questions: Questions
    asking: Asking
    journal: Journal
    progress: Progress
    clock: Clock = field(default_factory=Clock)
    compiled: set[Shape] = field(default_factory=set)

    def is_open(self, numbers: Sequence[int]) -> bool:
        return any(number not in self.journal for number in numbers)

    def replay(self, chunk: Sequence[int]) -> None:
        """The plan of a finished chunk once more: later batches may be padded to its shapes."""
        shown = [self.journal[number]["shown"] for number in chunk]
        collections.deque(self._batches([shown_bucket(each) for each in shown if each]), maxlen=0)

    def answer_chunk(self, asked: Sequence[Question]) -> None:
        broken = [question for question in asked if question.prompt is None]
        if self.is_open([question.number for question in broken]):
            self._keep(broken, [None] * len(broken))
        good = [question for question in asked if question.prompt is not None]
        for indices, shape in self._batches([question.prompt.bucket for question in good]):
            batch = [good[i] for i in indices]
            if self.is_open([question.number for question in batch]):
                self._keep(batch, self._answers(batch, shape))

    def _batches(self, buckets: Sequence[Bucket]) -> Iterator[tuple[list[int], Shape]]:
        answer = self.asking.n * self.asking.sampling.capacity
        return self.asking.batcher.batches([Size(bucket, answer) for bucket in buckets])

    def _answers(self, batch: Sequence[Question], shape: Shape) -> list[list[Answer]]:
        asking, chat = self.asking, self.questions.chat
        prompts, numbers = [question.prompt for question in batch], [question.number for question in batch]
        with self.clock.measure("answering" if shape in self.compiled else "answering, compiling first"):
            rows = batch_answers(chat, prompts, numbers, shape, asking.sampling, seed=asking.seed, n=asking.n)
        self.compiled.add(shape)
        return rows

    def _keep(self, asked: Sequence[Question], answers: Sequence[Sequence[Answer] | None]) -> None:
        self.progress.advance(sum(question.number not in self.journal for question in asked))
        pairs = zip(asked, answers, strict=True)
        self.journal.add((question.number, self._result(question, found)) for question, found in pairs)

    def _result(self, question: Question, answers: Sequence[Answer] | None) -> dict[str, Any]:
        """What the journal keeps of a question."""
        result: dict[str, Any] = {"error": question.error, "shown": question.shown}
        if answers is None:
            return result | {"reason": question.reason}
        return result | self.asking.keep(answers)
