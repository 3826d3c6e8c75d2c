"""Sampled answers: to a batch of prompts, or to one prompt with their text as it appears."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vr1_jax.data.collate import EncodedPrompt
from vr1_jax.data.tokenizer import ChatTokenizer
from vr1_jax.errors import UserError
from vr1_jax.evaluation.batching import Shape, Size
from vr1_jax.evaluation.chat_model import ChatModel
from vr1_jax.rl.experience import place_rows
from vr1_jax.sampling import generate as sampling
from vr1_jax.sampling.generate import Limits, Plan
from vr1_jax.sampling.settings import SamplingConfig

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoding leaves of a character that is not whole


@dataclass(frozen=True)
class Answer:
    text: str
    token_ids: list[int]
    logprobs: list[float]  # under the full distribution at temperature 1
    stopped: bool  # by a stop token, not by the length limit


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt so far."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    stopped: list[bool]

    def finish(self, tokenizer: ChatTokenizer) -> list[Answer]:
        rows = zip(self.tokens, self.logprobs, self.stopped, strict=True)
        return [Answer(tokenizer.decode(tokens), tokens, logps, stopped) for tokens, logps, stopped in rows]


def answers(
    chat: ChatModel, prompt: EncodedPrompt, config: SamplingConfig, *, n: int, seed: int, every: int | None = None
) -> Iterator[Answers]:
    """`n` answers, as they stand after each `every` tokens and at last; the prompt is read once.

    The same seed gives the same answers, whatever `every` and `n`.
    """
    bucket = Size(prompt.bucket).rounded().bucket  # questions of about the same size share a program
    plan = Plan.of(config, (n,), chat.tokenizer.stop_tokens, chat.tokenizer.pad_token)
    limits = Limits.of(config)
    keys = sampling.row_keys(jax.random.key(seed), 0, jnp.arange(n)[None])
    with chat.computing():
        batch = chat.batch([prompt], bucket)
        state = sampling.start(chat.model, (batch,), jnp.ones((1, n), bool), keys, limits, plan)
        written, done = 1, False
        while not done:
            written = config.max_new_tokens if every is None else min(written + every, config.max_new_tokens)
            state = sampling.advance(chat.model, state, limits, plan, jnp.int32(written))
            done = written == config.max_new_tokens or bool(state.done.all())
            yield _snapshot(state)


def batch_answers(
    chat: ChatModel,
    prompts: Sequence[EncodedPrompt],
    numbers: Sequence[int],
    shape: Shape,
    config: SamplingConfig,
    *,
    seed: int,
    n: int = 1,
) -> list[list[Answer]]:
    """`n` answers to each prompt, all prompts at once in a batch of this shape.

    What is drawn depends on the seed and on the prompt's own number, not on the batch that it is in.
    """
    idle = shape.rows - len(prompts)
    ids = np.array([*numbers] + [0] * idle, np.int32)[:, None] * np.int32(n) + np.arange(n, dtype=np.int32)
    active = np.repeat(np.arange(shape.rows)[:, None] < len(prompts), n, axis=1)
    plan = Plan.of(config, (n,), chat.tokenizer.stop_tokens, chat.tokenizer.pad_token)
    with chat.computing():
        if chat.mesh is not None:
            ids, active = place_rows((ids, active), chat.mesh)
        keys = sampling.row_keys(jax.random.key(seed), 0, jnp.asarray(ids))
        batch = chat.batch([*prompts, *[prompts[-1]] * idle], shape.size.bucket)
        found = sampling.generate(chat.model, (batch,), jnp.asarray(active), keys, Limits.of(config), plan)
        tokens, mask, logps, stopped = jax.device_get((found.tokens, found.mask, found.logps, found.stopped))
    rows = []
    for row in range(len(prompts)):
        lengths = mask[row].sum(-1)
        cut = [[values[row, g, : lengths[g]].tolist() for g in range(n)] for values in (tokens, logps)]
        rows.append(Answers(*cut, stopped[row].tolist()).finish(chat.tokenizer))
    return rows


def _snapshot(state: sampling.SamplingState) -> Answers:
    tokens, logps, lengths, done = jax.device_get((state.tokens, state.logps, state.lengths, state.done))
    if not np.isfinite(logps).all():
        raise UserError("the model's log-probs are not finite numbers: its weights are damaged")
    rows = range(tokens.shape[1])
    return Answers(
        [tokens[0, row, : lengths[0, row]].tolist() for row in rows],
        [logps[0, row, : lengths[0, row]].tolist() for row in rows],
        done[0].tolist(),
    )


class TextStream:
    """The text of a growing list of tokens, in pieces of whole characters; a character may span tokens."""

    def __init__(self, tokenizer: ChatTokenizer):
        self._tokenizer = tokenizer
        self._start = 0  # tokens before it are out
        self._shown = 0  # characters out of the text from there

    def update(self, tokens: list[int], *, last: bool = False) -> str:
        """What is new and certain, of all tokens so far; everything that is new if they are the last."""
        text = self._tokenizer.decode(tokens[self._start :])
        whole = not text.endswith(REPLACEMENT)
        certain = len(text) if whole or last else len(text.rstrip(REPLACEMENT))
        piece = text[self._shown : certain]
        if whole:
            self._start, self._shown = len(tokens), 0
        else:
            self._shown = max(certain, self._shown)
        return piece
