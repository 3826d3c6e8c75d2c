"""Every program that a run compiles, from abstract arguments: to plan without weights or data, and to measure.

The jitted functions are those that the loop calls, and arguments are shaped and placed as the loop places them.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vr1_jax.config import TrainConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.models.adapters import without_adapters
from vr1_jax.models.base import Model, unstack
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.families import abstract_model
from vr1_jax.models.flops import Workload
from vr1_jax.sampling.generate import Limits, Plan, SamplingState, generate, start
from vr1_jax.sampling.sampler import move_weights
from vr1_jax.sharding import ROLLOUT_RULES, TRAIN_RULES, abstract, batch_sharding
from vr1_jax.training.setup import Meshes, union
from vr1_jax.training.state import abstract_state
from vr1_jax.training.steps import cast, grpo_step, score_batch, sft_step
from vr1_jax.types import Completion, Experience, Prompt, Supervised, TrainState, blank_prompt

T = TypeVar("T")

# Which tokens end an answer or pad it are constants of the program; they change nothing about its size. No token
# is -1: where these programs are run, every answer gets its full length.
NEVER, PAD = (-1, -1), 0


@dataclass(frozen=True)
class Program:
    phase: str  # copy (of the weights, to sample with), rollout, reference, update, evaluate, loss (held-out)
    bucket: str  # kind of data and shape; empty where neither matters
    mesh: Mesh | None  # set while it is traced
    function: Any  # jitted
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def lower(self) -> jax.stages.Lowered:
        with self._on_mesh():
            return self.function.lower(*self.arguments, **self.options)

    def __call__(self, *arguments: Any) -> Any:
        """Its result for real arguments."""
        with self._on_mesh():
            return self.function(*arguments, **self.options)

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()


class Sizes(NamedTuple):
    """Bytes on each device of a compiled program."""

    arguments: int
    temporaries: int
    results: int  # beyond arguments that are given up

    @classmethod
    def of(cls, compiled: jax.stages.Compiled, platform: str) -> "Sizes":
        memory = compiled.memory_analysis()
        given, results = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
        temporaries = memory.temp_size_in_bytes
        if platform == "tpu":  # its temporaries do not all live together, and some are counted elsewhere
            temporaries = max(memory.peak_memory_in_bytes - given - results, 0)
        return cls(given, temporaries, results)


@dataclass(frozen=True)
class Outline:
    """A run in shapes: what it keeps, and what each step is given."""

    config: TrainConfig
    model: ModelConfig
    meshes: Meshes

    @property
    def platform(self) -> str:
        """cpu, cuda or tpu."""
        name = self.meshes.train.devices.flat[0].platform
        return "cuda" if name == "gpu" else name

    @functools.cached_property
    def state(self) -> TrainState:
        # A LoRA run's layers are apart. The CPU's compiler would keep all of them for the backward pass then.
        apart = self.platform != "cpu"
        return abstract_state(self.config, self.model, self.meshes.train, apart=apart)

    @functools.cached_property
    def reference(self) -> Model:
        """The frozen policy; also the shapes of the policy where it is scored before its first update."""
        if self.config.lora.rank:
            return without_adapters(self.state.model)
        weights = abstract_model(self.model, self.config.compute_dtype)
        return abstract(weights, TRAIN_RULES, self.meshes.train)

    @functools.cached_property
    def policy(self) -> Model:
        """The copy that samples."""
        weights = jax.eval_shape(lambda model: unstack(cast(model, self.config.compute_dtype)), self.state.model)
        return abstract(weights, ROLLOUT_RULES, self.meshes.rollout)

    @property
    def samples_in_place(self) -> bool:
        """Whether what samples are the very arrays that are trained around."""
        return bool(self.config.lora.rank) and self.meshes.train.size == 1

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

    def workload(self, kind: str, bucket: Bucket) -> Workload:
        """The padded shapes of one step. Answers are taken to be of full length."""
        config, rl, groups = self.config, self.config.stage == "rl", self.groups(kind)
        return Workload(
            prompts=config.prompts_per_step,
            slices=bucket.slices,
            patches=bucket.patches,
            tokens=bucket.tokens,
            group=groups[0] if rl else 1,
            answer=config.rollout.sampling.max_new_tokens if rl else config.data.answer_tokens,
            shuffled_group=sum(groups[1:]),
        )

    @property
    def evaluates(self) -> bool:
        return bool(self.config.watch.evaluate_every and self.config.data.heldout)

    @property
    def evaluated(self) -> list[tuple[str, Bucket]]:
        """(kind, shape) of held-out questions."""
        kinds = ("video", "image", "text") if self.evaluates else ()
        return [(kind, union(b)) for kind in kinds if (b := getattr(self.config.data, f"{kind}_buckets"))]

    def views(self, kind: str) -> tuple[int, ...]:
        """Answers to a held-out question: to its frames in order, shuffled, and blank."""
        return (self.config.watch.evaluate_answers or 1,) * (len(self.groups(kind)) + (kind != "text"))

    def sampling_arguments(self, bucket: Bucket, groups: tuple[int, ...]) -> tuple[Any, ...]:
        config, rows = self.config.rollout.sampling, self.config.prompts_per_step

        def make() -> tuple[tuple[Prompt, ...], jax.Array, jax.Array]:
            keys = jax.random.split(jax.random.key(0), (rows, sum(groups)))
            return (self._prompt(rows, bucket),) * len(groups), jnp.ones(keys.shape, bool), keys

        prompts, active, keys = self._batch(make, self.meshes.rollout)
        limits = jax.eval_shape(lambda: Limits.of(config))
        return self.policy, prompts, active, keys, limits, Plan.of(config, groups, NEVER, PAD)

    def sampling_state(self, kind: str, bucket: Bucket) -> SamplingState:
        """What a rollout holds on to: mostly the caches."""
        *arrays, plan = self.sampling_arguments(bucket, self.groups(kind))
        with jax.set_mesh(self.meshes.rollout):
            return jax.eval_shape(functools.partial(start, plan=plan), *arrays)

    def scored(self, bucket: Bucket) -> tuple[Prompt, jax.ShapeDtypeStruct]:
        """What log-probs are computed of before an update, or in SFT of held-out answers: the whole batch."""
        rows, rollout, data = self.config.prompts_per_step, self.config.rollout, self.config.data
        rl = self.config.stage == "rl"
        tokens = (rows, rollout.group, rollout.sampling.capacity) if rl else (rows, 1, data.answer_tokens)
        return self._batch(lambda: (self._prompt(rows, bucket), jnp.zeros(tokens, jnp.int32)))

    def experience(self, bucket: Bucket) -> Experience:
        """Of one update, its answers at full length."""
        config = self.config
        rows = config.prompts_per_step // config.updates_per_batch
        slots = (rows, config.rollout.group, config.rollout.sampling.capacity)
        has_old = config.old_logps == "sampler" or self.scores_policy

        def make() -> Experience:
            logps, tokens, mask = (jnp.zeros(slots, dtype) for dtype in (jnp.float32, jnp.int32, jnp.bool_))
            reference, old = logps if self.has_reference else None, logps if has_old else None
            completion = Completion(tokens, mask, logps, mask[..., 0])
            return Experience(self._prompt(rows, bucket), completion, logps[..., 0], reference, old)

        return self._batch(make)

    def supervised(self, bucket: Bucket) -> Supervised:
        rows, data = self.config.prompts_per_step, self.config.data

        def make() -> Supervised:
            tokens, prompt = jnp.zeros((rows, 1, data.answer_tokens), jnp.int32), self._prompt(rows, bucket)
            return Supervised(prompt, tokens, tokens > 0, prompt.mask if data.loss_on == "upstream" else None)

        return self._batch(make)

    def _prompt(self, rows: int, bucket: Bucket) -> Prompt:
        return blank_prompt(rows, **dataclasses.asdict(bucket), values=self.model.vision.patch_values)

    def _batch(self, make: Callable[[], T], mesh: Mesh | None = None) -> T:
        """Shapes of what `make` makes, its rows over the training mesh or another."""
        where = batch_sharding(mesh or self.meshes.train)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), jax.eval_shape(make))


def programs(outline: Outline) -> Iterator[Program]:
    config, train, rollout = outline.config, outline.meshes.train, outline.meshes.rollout
    update = {
        "optimizer": config.optimizer,
        "microbatches": config.microbatches,
        "compute_dtype": config.compute_dtype,
    }
    if (config.stage == "rl" or outline.evaluates) and not outline.samples_in_place:
        yield _copy(outline)
    for kind, bucket in outline.buckets:
        name = f"{kind}: {bucket}"
        if config.stage == "sft":
            options = {"aggregation": config.sft_aggregation, **update}
            yield Program("update", name, train, sft_step, (outline.state, outline.supervised(bucket)), options)
            continue
        asked = outline.sampling_arguments(bucket, outline.groups(kind))
        yield Program("rollout", name, rollout, generate, asked, {})
        if outline.has_reference or outline.scores_policy:
            yield _score(outline, "reference", bucket, name)
        options = {"algorithm": config.grpo, **update}
        yield Program("update", name, train, grpo_step, (outline.state, outline.experience(bucket)), options)
    for kind, bucket in outline.evaluated:
        name, asked = f"{kind}: {bucket}", outline.sampling_arguments(bucket, outline.views(kind))
        yield Program("evaluate", name, rollout, generate, asked, {})
        if config.stage == "sft":
            yield _score(outline, "loss", bucket, name)


def _copy(outline: Outline) -> Program:
    weights = abstract(outline.policy, TRAIN_RULES, outline.meshes.train)
    if outline.platform == "cpu":  # which moves bf16 as fp32; as whole numbers, bytes are bytes
        bits = jnp.dtype(f"uint{8 * jnp.dtype(outline.config.compute_dtype).itemsize}")
        weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, bits, sharding=x.sharding), weights)
    return Program("copy", "", None, move_weights(weights, outline.meshes.rollout), (weights,), {})


def _score(outline: Outline, phase: str, bucket: Bucket, name: str) -> Program:
    arguments = (outline.reference, *outline.scored(bucket))
    options = {"microbatches": outline.config.microbatches}
    return Program(phase, name, outline.meshes.train, score_batch, arguments, options)


def bytes_per_device(tree: Any) -> int:
    """Of abstract arrays; without a sharding, of the whole."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
