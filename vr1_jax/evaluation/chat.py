"""A model directory made ready to answer: weights, tokenizer, how prompts are made for it, and its answers."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vr1_jax.data.collate import Bucket, EncodedPrompt, PromptLayout, collate
from vr1_jax.data.encode import Encoder
from vr1_jax.data.prompts import Presentation, read_presentation
from vr1_jax.data.tokenizer import ChatTokenizer, load_tokenizer
from vr1_jax.errors import UserError
from vr1_jax.evaluation.batching import Batcher, Shape, Size, rows_per_device
from vr1_jax.media.frames import VisualGeometry
from vr1_jax.models.base import Model, computing_in, unstack
from vr1_jax.models.config import ModelConfig
from vr1_jax.sampling.sampler import Sampler
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.sharding import ROLLOUT_RULES
from vr1_jax.weights.checkpoint_dir import assets_directory
from vr1_jax.weights.hf_directory import parse_config, read_hf_config
from vr1_jax.weights.loading import load_model

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoding leaves of a character that is not whole


class OutOfDeviceMemory(UserError):
    """Model and batch do not fit."""


@dataclass(frozen=True)
class Answer:
    text: str
    token_ids: list[int]
    logprobs: list[float]  # under the full distribution at temperature 1
    stopped: bool  # by a stop token, not by the length limit


@dataclass(frozen=True)
class ChatModel:
    """Everything that turns questions into arrays, and the model that takes them."""

    model: Model
    config: ModelConfig
    tokenizer: ChatTokenizer
    layout: PromptLayout
    presentation: Presentation  # how it is asked
    dtype: np.dtype
    mesh: Mesh | None = None  # over which rows and weights are split; None for one device

    @property
    def devices(self) -> int:
        """Among how many devices, or groups of devices that hold the weights together, rows are split."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def encoder(self) -> Encoder:
        vision, asked = self.config.vision, self.presentation
        geometry = VisualGeometry(vision.patch, vision.merge, vision.temporal)
        return Encoder(self.tokenizer, asked.frames, asked.images, geometry, asked.style)

    def sampler(self, seed: int) -> Sampler:
        return Sampler(self.tokenizer.stop_tokens, self.tokenizer.pad_token, jax.random.key(seed), self.mesh)

    def batcher(self, rows: int | None = None) -> Batcher:
        """At most so many rows on a device; None for as many as its memory holds."""
        devices = jax.local_devices() if self.mesh is None else self.mesh.local_devices
        return Batcher(self.devices, rows_per_device(self.config, self.dtype.itemsize, devices, rows))

    def arrays(self, prompts: Sequence[EncodedPrompt], bucket: Bucket) -> dict[str, np.ndarray]:
        """The prompts padded to the bucket."""
        values = self.config.vision.patch_values
        return collate(prompts, bucket, self.layout, pad_token=self.tokenizer.pad_token, values=values)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Around every use of the model: its precision, its mesh, and a readable end of the device's memory."""
        mesh = contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
        try:
            with computing_in(self.dtype), mesh:
                yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfDeviceMemory(
                "the device has too little memory for this model and input; fewer frames, bfloat16 weights or a "
                "larger device would do"
            ) from error


def load_chat_model(
    path: str | PathLike[str],
    *,
    dtype: str | None = None,
    presentation: Presentation | None = None,
    mesh: Mesh | None = None,
    scores: bool = False,
) -> ChatModel:
    """From a Hugging Face, converted or run directory. The default dtype is bfloat16, on a CPU float32.

    Records are presented to it as it was trained to see them, unless told otherwise.
    On a mesh each group of `tensor` devices holds the weights, as while sampling in training. `scores`: for
    log-probs of given answers, not for new ones; each wants the layers' weights laid out otherwise.
    """
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such directory; --model takes a model directory")
    assets = assets_directory(Path(path))
    tokenizer = load_tokenizer(assets)
    tokenizer.check_fits(parse_config(read_hf_config(assets), assets))
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model, config = load_model(path, dtype=dtype, mesh=mesh, rules=ROLLOUT_RULES)
    if not scores:
        model = unstack(model, free=True)
    asked = presentation or read_presentation(assets)
    layout = PromptLayout.of(config, asked.positions, asked.spacing)
    return ChatModel(model, config, tokenizer, layout, asked, np.dtype(jnp.dtype(dtype)), mesh)


@dataclass(frozen=True)
class Partial:
    """The answers to one prompt so far."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    stopped: list[bool]

    def finish(self, tokenizer: ChatTokenizer) -> list[Answer]:
        rows = zip(self.tokens, self.logprobs, self.stopped, strict=True)
        return [Answer(tokenizer.decode(tokens), tokens, logps, stopped) for tokens, logps, stopped in rows]


def _partial(tokens: np.ndarray, logps: np.ndarray, lengths: np.ndarray, stopped: np.ndarray) -> Partial:
    cut = [[row[:length].tolist() for row, length in zip(x, lengths, strict=True)] for x in (tokens, logps)]
    return Partial(*cut, stopped.tolist())


def stream_answers(
    chat: ChatModel, prompt: EncodedPrompt, config: SamplingConfig, *, n: int, seed: int, every: int | None = None
) -> Iterator[Partial]:
    """`n` answers, as they stand after each `every` tokens and at last; the prompt is read once.

    The same seed gives the same answers, whatever `every` and `n`.
    """
    bucket = Size(prompt.bucket).rounded().bucket  # questions of about the same size share a program
    with chat.computing():
        arrays = chat.arrays([prompt], bucket)
        for state in chat.sampler(seed).stream(chat.model, arrays, n, config, np.zeros(1, np.int32), every):
            found = jax.device_get((state.tokens, state.logps, state.lengths, state.done))
            if not np.isfinite(found[1]).all():
                raise UserError("the model's log-probs are not finite numbers: its weights are damaged")
            yield _partial(*(x[0] for x in found))


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
    with chat.computing():
        arrays = chat.arrays([*prompts, *[prompts[-1]] * idle], shape.size.bucket)
        ids, active = np.array([*numbers] + [0] * idle, np.int32), np.arange(shape.rows) < len(prompts)
        (found,) = chat.sampler(seed)(chat.model, [arrays], (n,), config, ids, active=active)
        tokens, mask, logps, stopped = jax.device_get((found.tokens, found.mask, found.logps, found.stopped))
    rows = (_partial(*row) for row in zip(tokens, logps, mask.sum(-1), stopped, strict=True))
    return [row.finish(chat.tokenizer) for row, _ in zip(rows, prompts, strict=False)]


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
