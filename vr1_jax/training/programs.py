"""Every program that a run compiles, from abstract arguments: to compile and to plan without weights or data.

The jitted functions are those that the loop calls, and arguments are shaped and placed as the loop places them.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vr1_jax.config import TrainConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.qwen25vl import Qwen25VL, abstract_model
from vr1_jax.sampling import generate as sampling
from vr1_jax.sampling.generate import Limits, Plan, SamplingState, generate
from vr1_jax.sampling.placement import moving
from vr1_jax.sharding import ROLLOUT_RULES, TRAIN_RULES, abstract, batch_sharding
from vr1_jax.training.setup import Meshes, abstract_state
from vr1_jax.training.steps import grpo_step, score_batch, sft_step
from vr1_jax.types import Completion, Experience, Prompt, Supervised, TrainState, blank_prompt

# Which tokens end an answer or pad it are constants of the program; they change nothing about its size.
_STOP, _PAD = (0, 1), 0


@dataclass(frozen=True)
class Program:
    phase: str  # copy, rollout, reference, update
    bucket: str  # kind of data and shape; empty where neither matters
    mesh: Mesh | None  # set while it is traced
    function: Any  # jitted
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def lower(self) -> jax.stages.Lowered:
        if self.mesh is None:
            return self.function.lower(*self.arguments, **self.options)
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments, **self.options)


@dataclass(frozen=True)
class Outline:
    """A run in shapes: what it keeps, and what each step is given."""

    config: TrainConfig
    model: ModelConfig
    meshes: Meshes

    @functools.cached_property
    def state(self) -> TrainState:
        return abstract_state(self.config, self.model, self.meshes.train)

    @functools.cached_property
    def reference(self) -> Qwen25VL:
        """The frozen policy; also the shapes of the policy where it is scored before its first update."""
        weights = abstract_model(self.model, self.config.compute_dtype)
        return abstract(weights, TRAIN_RULES, self.meshes.train)

    @functools.cached_property
    def policy(self) -> Qwen25VL:
        """The copy that samples."""
        weights = abstract_model(self.model, self.config.compute_dtype)
        return abstract(weights, ROLLOUT_RULES, self.meshes.rollout)

    @property
    def has_reference(self) -> bool:
        return self.config.stage == "rl" and self.config.grpo.beta > 0

    @property
    def scores_policy(self) -> bool:
        config = self.config
        return config.stage == "rl" and config.old_logps == "trainer" and config.updates_per_step > 1

    @property
    def buckets(self) -> list[tuple[str, Bucket]]:
        """(kind, shape); kinds that are never drawn are left out."""
        data, share = self.config.data, self.config.data.image_share
        kinds = {"video": data.video_buckets, "image": data.image_buckets, "text": data.text_buckets}
        if share is not None:
            kinds = {"video": kinds["video"] if share < 1 else (), "image": kinds["image"] if share > 0 else ()}
        return [(kind, bucket) for kind, choice in kinds.items() for bucket in choice]

    def groups(self, kind: str) -> tuple[int, ...]:
        rollout = self.config.rollout
        shuffled = rollout.shuffled_group if kind == "video" else 0
        return (rollout.group, shuffled) if shuffled else (rollout.group,)

    def sampling_arguments(self, kind: str, bucket: Bucket) -> tuple[Any, ...]:
        config, groups, mesh = self.config.rollout.sampling, self.groups(kind), self.meshes.rollout
        shape = (self.config.prompts_per_step, sum(groups))
        active = _rows(shape, jnp.bool_, mesh)
        keys = _rows(shape, jax.random.key(0).dtype, mesh)
        limits = jax.eval_shape(lambda: Limits.of(config))
        prompts = (_prompt(shape[0], bucket, self.model, mesh),) * len(groups)
        return self.policy, prompts, active, keys, limits, Plan.of(config, groups, _STOP, _PAD)

    def sampling_state(self, kind: str, bucket: Bucket) -> SamplingState:
        """What a rollout holds on to: mostly the caches."""
        *arrays, plan = self.sampling_arguments(kind, bucket)
        with jax.set_mesh(self.meshes.rollout):
            return jax.eval_shape(functools.partial(sampling.start, plan=plan), *arrays)

    def experience(self, kind: str, bucket: Bucket) -> Experience:
        """Of one update, its answers at full length."""
        config, mesh = self.config, self.meshes.train
        prompts = config.prompts_per_step // config.updates_per_batch
        slots = (prompts, config.rollout.group, config.rollout.sampling.capacity)
        logps = _rows(slots, jnp.float32, mesh)
        completion = Completion(
            _rows(slots, jnp.int32, mesh), _rows(slots, jnp.bool_, mesh), logps, _rows(slots[:2], jnp.bool_, mesh)
        )
        has_old = config.old_logps == "sampler" or self.scores_policy
        return Experience(
            _prompt(prompts, bucket, self.model, mesh),
            completion,
            _rows(slots[:2], jnp.float32, mesh),
            logps if self.has_reference else None,
            logps if has_old else None,
        )

    def supervised(self, bucket: Bucket) -> Supervised:
        config, mesh = self.config, self.meshes.train
        prompts, slots = config.prompts_per_step, config.data.answer_tokens
        prompt_mask = (prompts, bucket.tokens) if config.data.loss_on == "upstream" else None
        return Supervised(
            _prompt(prompts, bucket, self.model, mesh),
            _rows((prompts, 1, slots), jnp.int32, mesh),
            _rows((prompts, 1, slots), jnp.bool_, mesh),
            None if prompt_mask is None else _rows(prompt_mask, jnp.bool_, mesh),
        )


def programs(outline: Outline) -> Iterator[Program]:
    config, train = outline.config, outline.meshes.train
    shared = {"optimizer": config.optimizer, "microbatches": config.microbatches}
    shared["compute_dtype"] = config.compute_dtype
    if config.stage == "sft":
        for kind, bucket in outline.buckets:
            arguments = (outline.state, outline.supervised(bucket))
            yield Program("update", f"{kind}: {bucket}", train, sft_step, arguments, shared)
        return
    weights = outline.reference
    if jax.devices()[0].platform == "cpu":  # which moves bf16 as fp32; as whole numbers, bytes are bytes
        bits = jnp.dtype(f"uint{8 * jnp.dtype(config.compute_dtype).itemsize}")
        weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, bits, sharding=x.sharding), weights)
    yield Program("copy", "", None, moving(weights, outline.meshes.rollout), (weights,), {})
    for kind, bucket in outline.buckets:
        name = f"{kind}: {bucket}"
        sampled = outline.sampling_arguments(kind, bucket)
        yield Program("rollout", name, outline.meshes.rollout, generate, sampled, {})
        experience = outline.experience(kind, bucket)
        if outline.has_reference or outline.scores_policy:
            whole = _rows((config.prompts_per_step, *experience.completion.tokens.shape[1:]), jnp.int32, train)
            prompt = _prompt(config.prompts_per_step, bucket, outline.model, train)
            scored = {"prompt": prompt, "tokens": whole, "microbatches": config.microbatches}
            yield Program("reference", name, train, score_batch, (outline.reference,), scored)
        options = {"algorithm": config.grpo, **shared}
        yield Program("update", name, train, grpo_step, (outline.state, experience), options)


def bytes_per_device(tree: Any) -> int:
    """Of abstract arrays; without a sharding, of the whole."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _prompt(rows: int, bucket: Bucket, model: ModelConfig, mesh: Mesh) -> Prompt:
    shapes: Callable[[], Prompt] = functools.partial(
        blank_prompt,
        rows,
        slices=bucket.slices,
        patches=bucket.patches,
        tokens=bucket.tokens,
        values=model.vision.patch_values,
    )
    return jax.tree.map(lambda x: _rows(x.shape, x.dtype, mesh), jax.eval_shape(shapes))


def _rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
