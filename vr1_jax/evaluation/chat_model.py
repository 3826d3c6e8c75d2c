"""A model directory made ready to answer: weights, tokenizer, and how prompts are laid out for it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vr1_jax.data.collate import Bucket, EncodedPrompt, collate
from vr1_jax.data.layout import PromptLayout
from vr1_jax.data.presentation import Presentation, read_presentation
from vr1_jax.data.tokenizer import ChatTokenizer, load_tokenizer
from vr1_jax.errors import UserError
from vr1_jax.media.frames import VisualGeometry
from vr1_jax.models.base import Model, computing_in
from vr1_jax.models.config import ModelConfig
from vr1_jax.rl.experience import place
from vr1_jax.sharding import ROLLOUT_RULES
from vr1_jax.types import Prompt
from vr1_jax.weights.checkpoint_dir import assets_directory
from vr1_jax.weights.hf_directory import parse_config, read_hf_config
from vr1_jax.weights.loading import load_model


class OutOfDeviceMemory(UserError):
    """Model and batch do not fit."""


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
    def geometry(self) -> VisualGeometry:
        vision = self.config.vision
        return VisualGeometry(vision.patch, vision.merge, vision.temporal)

    def batch(self, prompts: Sequence[EncodedPrompt], bucket: Bucket) -> Prompt:
        """The prompts on the device, padded to the bucket."""
        values = self.config.vision.patch_values
        arrays = collate(prompts, bucket, self.layout, pad_token=self.tokenizer.pad_token, values=values)
        if self.mesh is not None:
            return place(arrays, self.mesh)
        return Prompt(**{name: jnp.asarray(array) for name, array in arrays.items()})

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
) -> ChatModel:
    """From a Hugging Face, converted or run directory. The default dtype is bfloat16, on a CPU float32.

    Records are presented to it as it was trained to see them, unless told otherwise.
    On a mesh each group of `tensor` devices holds the weights, as while sampling in training.
    """
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such directory; --model takes a model directory")
    assets = assets_directory(Path(path))
    tokenizer = load_tokenizer(assets)
    tokenizer.check_fits(parse_config(read_hf_config(assets), assets))
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model, config = load_model(path, dtype=dtype, mesh=mesh, rules=ROLLOUT_RULES)
    asked = presentation or read_presentation(assets)
    layout = PromptLayout.of(config, asked.positions, asked.spacing)
    return ChatModel(model, config, tokenizer, layout, asked, np.dtype(jnp.dtype(dtype)), mesh)
