"""However often it is stopped, every batch is computed once, and in the shape it would have had."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.data.collate import EncodedPrompt, VisualBlock
from vr1_jax.evaluation import answering
from vr1_jax.evaluation.answering import Asking, Question, Questions, answer_questions
from vr1_jax.evaluation.batching import Batcher
from vr1_jax.evaluation.chat import Answer
from vr1_jax.evaluation.journal import Journal
from vr1_jax.progress import Progress
from vr1_jax.sampling.settings import SamplingConfig

CHUNK = 13


class Made(Questions):
    """Questions of random sizes, every eleventh broken; what is read is counted."""

    def __init__(self, total: int):
        chance = np.random.default_rng(5)
        self.__dict__.update(chat=None, reads=[], questions=[self._make(n, chance) for n in range(total)])

    def _make(self, number: int, chance: np.random.Generator) -> Question:
        if number % 11 == 7:
            return Question(number, error="broken", reason="broken")
        tokens, grid = (
            int(chance.integers(100, 900)),
            [int(chance.integers(1, 9)), 2 * int(chance.integers(2, 12)), 8],
        )
        patches = np.zeros((grid[0], grid[1] * grid[2], 1), np.uint8)
        shown = {"prompt_tokens": tokens, "grid": grid}
        block = VisualBlock(tuple(grid), 1.0)
        return Question(number, EncodedPrompt(np.zeros(tokens, np.int32), (block,), (patches,)), shown)

    def ahead(self, numbers, *, depth, workers=None):
        for number in numbers:
            self.reads.append(number)
            yield self.questions[number]


class Model:
    """Answers with the batch that it was asked in, until it is stopped."""

    def __init__(self, batches: int):
        self.left, self.asked = batches, []

    def __call__(self, chat, prompts, numbers, shape, config, *, seed, n):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += numbers
        return [[Answer(f"{number} in {numbers} {shape}", [1], [-0.5], True)] for number in numbers]


def run(path: Path, total: int, batches: int) -> tuple[Made, Model, dict | None]:
    """One start of the program; what the journal holds once it is through."""
    questions, model = Made(total), Model(batches)
    asking = Asking(SamplingConfig(8), 0, Batcher(2, lambda size: 2), CHUNK, None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(answering, "batch_answers", model)
        with Journal(path, {}) as journal, Progress("answered", total) as progress:
            try:
                answer_questions(questions, range(total), asking, journal, progress)
            except KeyboardInterrupt:
                return questions, model, None
            return questions, model, {number: journal[number] for number in journal}


@settings(deadline=None, max_examples=15)
@given(total=st.integers(1, 90), stops=st.lists(st.integers(0, 9), max_size=4), cut=st.integers(0, 200))
def test_any_stops(total, stops, cut):
    with tempfile.TemporaryDirectory() as folder:
        _, _, expected = run(Path(folder) / "whole", total, -1)
        assert sorted(expected) == list(range(total))
        path, asked, found = Path(folder) / "stopped", [], None
        for batches in stops:
            _, model, found = run(path, total, batches)
            asked += model.asked
            if found is not None:
                break
            if path.exists():
                path.write_bytes(path.read_bytes() + b'{"number": 1, "result": '[:cut])  # half a line
        if found is None:
            _, model, found = run(path, total, -1)
            asked += model.asked
        assert found == expected
        assert sorted(asked) == [number for number in range(total) if number % 11 != 7]


def test_finished_chunks_are_not_read_again(tmp_path):
    total = 5 * CHUNK
    _, first, found = run(tmp_path / "journal", total, 8)
    assert found is None
    questions, _, found = run(tmp_path / "journal", total, -1)
    assert len(found) == total
    done = set(first.asked) | {number for number in range(total) if number % 11 == 7}
    finished = [n for n in range(total) if set(range(n - n % CHUNK, n - n % CHUNK + CHUNK)) <= done]
    assert len(finished) >= CHUNK
    assert questions.reads == [number for number in range(total) if number not in finished]
