"""Log-probs of given answers, in batches of similar size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vr1_jax.data.collate import EncodedPrompt
from vr1_jax.evaluation.batching import Batcher, Shape, Size
from vr1_jax.evaluation.chat_model import ChatModel
from vr1_jax.rl.logprobs import score_completions


@dataclass(frozen=True)
class Answered:
    """A prompt, and the tokens of the answer whose log-probs are wanted."""

    prompt: EncodedPrompt
    answer: tuple[int, ...]

    @property
    def size(self) -> Size:
        return Size(self.prompt.bucket, len(self.answer))


def answer_logps(chat: ChatModel, items: list[Answered], batcher: Batcher) -> Iterable[tuple[int, np.ndarray]]:
    """(index into `items`, natural log-probs of its answer), each once, in the order that they are computed."""
    for indices, shape in batcher.batches([item.size for item in items]):
        yield from zip(indices, _batch_logps(chat, [items[i] for i in indices], shape), strict=True)


def _batch_logps(chat: ChatModel, items: list[Answered], shape: Shape) -> Iterator[np.ndarray]:
    rows = items + items[-1:] * (shape.rows - len(items))
    prompt = chat.batch([item.prompt for item in rows], shape.size.bucket)
    tokens = np.full((shape.rows, 1, shape.size.answer), chat.tokenizer.pad_token, np.int32)
    for row, item in enumerate(items):
        tokens[row, 0, : len(item.answer)] = item.answer
    with chat.computing():
        logps = np.asarray(_logps(chat.model, prompt, jnp.asarray(tokens)))
    return (logps[row, 0, : len(item.answer)] for row, item in enumerate(items))


@jax.jit
def _logps(model, prompt, tokens):
    return score_completions(model, prompt, tokens).logps
