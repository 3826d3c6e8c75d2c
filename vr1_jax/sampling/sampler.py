"""The one way to sample: arrays of prompts in, answers out, on one device or a mesh.

    sampler = Sampler(stop_tokens, pad_token, jax.random.key(seed), mesh)
    ordered, shuffled = sampler(policy, [arrays, shuffled_arrays], (8, 4), SamplingConfig(), row_ids, step)

What a row draws depends on the seed, the step and its own number, not on the batch or the devices it is on.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Key

from vr1_jax.models.base import Model, is_unstacked, unstack
from vr1_jax.sampling.generate import Limits, Plan, SamplingState, advance, generate, row_keys, split_groups, start
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.sharding import ROLLOUT_RULES, place_rows, shardings
from vr1_jax.types import Completion, Prompt

Arrays = dict[str, np.ndarray]  # a batch as `data` collates it, under the names of Prompt


@dataclass(frozen=True)
class Sampler:
    stop_tokens: tuple[int, ...]
    pad_token: int
    seed: Key[jax.Array, ""]
    mesh: Mesh | None = None  # None: the first device

    def __call__(
        self,
        model: Model,
        arrays: Sequence[Arrays],
        groups: tuple[int, ...],
        config: SamplingConfig,
        row_ids: np.ndarray,
        step: int = 0,
        active: np.ndarray | None = None,
    ) -> list[Completion]:
        """groups[n] answers to each prompt of arrays[n]: ordered and shuffled frames in one call.

        Prompts that are not `active` only fill the batch: they get no answers and cost no steps.
        """
        with self._on_mesh():
            inputs = self._inputs(arrays, groups, row_ids, step, active)
            return split_groups(generate(model, *inputs, Limits.of(config), self.plan(config, groups)), groups)

    def stream(
        self, model: Model, arrays: Arrays, n: int, config: SamplingConfig, row_ids: np.ndarray, every: int | None
    ) -> Iterator[SamplingState]:
        """`n` answers to each prompt, as they stand after each `every` tokens and at last."""
        limits, plan = Limits.of(config), self.plan(config, (n,))
        with self._on_mesh():
            state = start(model, *self._inputs([arrays], (n,), row_ids, 0, None), limits, plan)
            written, done = 1, False
            while not done:
                written = config.max_new_tokens if every is None else min(written + every, config.max_new_tokens)
                state = advance(model, state, limits, plan, jnp.int32(written))
                done = written == config.max_new_tokens or bool(state.done.all())
                yield state

    def plan(self, config: SamplingConfig, groups: tuple[int, ...]) -> Plan:
        return Plan.of(config, groups, self.stop_tokens, self.pad_token)

    def _on_mesh(self) -> AbstractContextManager:
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _inputs(self, arrays, groups, row_ids, step, active):
        answers = np.arange(sum(groups), dtype=np.int32)
        ids = np.asarray(row_ids)[:, None].astype(np.int32) * np.int32(len(answers)) + answers
        if active is None:
            active = np.ones(len(ids), bool)
        ids, active = place_rows((ids, np.repeat(active[:, None], len(answers), axis=1)), self.mesh)
        prompts = tuple(place_prompt(part, self.mesh) for part in arrays)
        return prompts, active, row_keys(self.seed, step, ids)


def place_prompt(arrays: Arrays, mesh: Mesh | None) -> Prompt:
    """A global batch from the rows of this process."""
    return Prompt(**place_rows(arrays, mesh))


def rollout_params(model: Model, mesh: Mesh, dtype: DTypeLike = jnp.bfloat16) -> Model:
    """The weights to sample with, once per step: cast and taken apart by layers where they lie, then moved.

    In this order half the bytes travel, and no fp32 copy is ever whole on a device. `mesh` holds the same
    devices as the training mesh, but may split them otherwise: a larger `tensor` leaves more room for caches.
    """
    if is_unstacked(model):  # a LoRA run's: its large arrays are the very ones that are trained around
        cast = jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), model)
    else:
        cast = _cast_by_layer(model, dtype)
    return cast if mesh.size == 1 else move_weights(cast, mesh)(cast)


def move_weights(model: Model, mesh: Mesh) -> jax.stages.Wrapped:
    """The program that moves weights from device to device; `device_put` would take them through the host."""
    return jax.jit(_same, out_shardings=shardings(model, ROLLOUT_RULES, mesh))


@functools.partial(jax.jit, static_argnames="dtype")
def _cast_by_layer(model: Model, dtype: DTypeLike) -> Model:
    return jax.tree.map(lambda x: x.astype(dtype), unstack(model))


def _same(model: Any) -> Any:
    return model
