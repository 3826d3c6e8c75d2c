"""Records of a benchmark to prompts, read ahead of the device; what cannot be read says why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vr1_jax.data.collate import Bucket, EncodedPrompt
from vr1_jax.data.prompts import prompt_messages, question_text
from vr1_jax.data.quarantine import Refusal
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError, Sample
from vr1_jax.evaluation.chat_model import ChatModel
from vr1_jax.evaluation.prompting import encode_messages, read_ahead, view_media
from vr1_jax.media.frames import MediaError
from vr1_jax.media.reader import MediaReader


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
        return read_ahead(self.read, numbers, self.chat.geometry.unit, depth=depth, workers=workers)

    def read(self, number: int, reader: MediaReader) -> Question:
        try:
            return self._read(number, self.records[number], reader)
        except (RecordError, MediaError) as error:
            reason = Refusal.of(error, str(self.records.path), number).reason
            return Question(number, error=" ".join(str(error).split()), reason=reason)

    def _read(self, number: int, sample: Sample, reader: MediaReader) -> Question:
        view, geometry, asked = None, self.chat.geometry, self.chat.presentation
        if sample.data_type != "text":
            path = sample.media(self.media_root)
            view = view_media(reader, sample.data_type, path, geometry, asked.frames, asked.images)
        messages = prompt_messages(sample, asked.style)
        prompt = encode_messages(messages, self.chat.tokenizer, view, geometry.merge)
        shown = {"prompt": question_text(sample, asked.style), "prompt_tokens": len(prompt.tokens)}
        return Question(number, prompt, shown if view is None else shown | view.seen(geometry.patch))


def shown_bucket(shown: dict[str, Any]) -> Bucket:
    """The smallest bucket of a question whose prompt is no longer at hand."""
    slices, rows, columns = shown.get("grid", (0, 0, 0))
    return Bucket(slices, rows * columns, shown["prompt_tokens"])
