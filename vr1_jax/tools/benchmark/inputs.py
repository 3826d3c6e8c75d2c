"""What to measure, a training config with the shapes of one step, built in or from a file; and its inputs:
prompts with real layouts, random weights, given answers."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from vr1_jax.config import DataConfig, TrainConfig, WatchConfig, load_config
from vr1_jax.data.collate import Bucket, EncodedPrompt, PromptLayout, VisualBlock, collate
from vr1_jax.data.sources import cost
from vr1_jax.errors import UsageError
from vr1_jax.models.base import Model, is_unstacked, unstack
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.families import build
from vr1_jax.models.flops import Workload
from vr1_jax.models.qwen25vl import PUBLISHED
from vr1_jax.sampling.sampler import place_prompt
from vr1_jax.sharding import place_rows
from vr1_jax.tools.plan.programs import PAD, Outline, Program
from vr1_jax.tools.world.model import SMALL, TINY
from vr1_jax.training import setup
from vr1_jax.training.steps import init_state
from vr1_jax.types import Completion, Experience, Supervised, TrainState

T = TypeVar("T")
Stage = Literal["sft", "rl"]

# 16 frames at the training budget and answers of up to 768 tokens, as configs/tgrpo_a100.py has them.
_VIDEO_STEP = Workload(prompts=8, slices=8, patches=540, tokens=1408, group=8, answer=768, shuffled_group=4)
# The model, its step, and what else is not TrainConfig's default.
SIZES: dict[str, tuple[ModelConfig, Workload, dict[str, Any]]] = {
    "tiny": (TINY, Workload(8, 4, 16, 192, 8, 48, 4), {"compute_dtype": "float32"}),
    "30m": (SMALL, Workload(1, 8, 324, 831, 8, 64, 4), {"compute_dtype": "float32"}),
    **{size.lower(): (model, _VIDEO_STEP, {"microbatches": 8}) for size, model in PUBLISHED.items()},
}


@dataclass(frozen=True)
class Subject:
    """What a benchmark measures."""

    name: str
    outline: Outline  # a step in one bucket of one kind, with one update of the whole batch
    file: TrainConfig | None = None  # as it was read, with all its buckets
    model: Path | None = None  # a directory with weights; without one they are random

    @property
    def config(self) -> TrainConfig:
        return self.outline.config

    @property
    def work(self) -> Workload:
        return self.outline.workload(*self.outline.buckets[0])


def of_size(name: str, stage: Stage | None = None, **changes: Any) -> Subject:
    """A built-in size. `changes`: fields of its workload, `microbatches`, `tensor`, `rollout_tensor`, `dtype`."""
    model, work, settings = SIZES[name]
    data = DataConfig(records=("built in",))
    config = TrainConfig(stage or "rl", model="", run="", steps=1, data=data, **settings)
    return Subject(name, _outline(config, model, "video", work, changes))


def of_file(path: Path, kind: str = "video", stage: Stage | None = None, **changes: Any) -> Subject:
    """A training config with its model; of a kind's buckets the middle one. `changes` as in `of_size`."""
    file = load_config(path)
    config = dataclasses.replace(file, stage=stage or file.stage)
    buckets = sorted(getattr(config.data, f"{kind}_buckets"), key=cost)
    if not buckets:
        raise UsageError(f"data.{kind}_buckets is empty; there is no such step to measure")
    model, directory = setup.read_model_config(config), Path(config.model)
    work = Outline(config, model, setup.make_meshes(config)).workload(kind, buckets[len(buckets) // 2])
    return Subject(directory.name, _outline(config, model, kind, work, changes), file, directory)


def _outline(
    config: TrainConfig, model: ModelConfig, kind: str, work: Workload, changes: dict[str, Any]
) -> Outline:
    names = {field.name for field in dataclasses.fields(Workload)}
    work = dataclasses.replace(work, **{name: value for name, value in changes.items() if name in names})
    _check(work, model)
    buckets = {f"{each}_buckets": () for each in ("video", "image", "text")}
    buckets[f"{kind}_buckets"] = (Bucket(work.slices, work.patches, work.tokens),)
    mesh = {name: changes[name] for name in ("tensor", "rollout_tensor") if name in changes}
    sampling = dataclasses.replace(config.rollout.sampling, max_new_tokens=work.answer)
    rollout = {"group": work.group, "shuffled_group": work.shuffled_group, "sampling": sampling}
    config = dataclasses.replace(
        config,
        prompts_per_step=work.prompts,
        updates_per_batch=1,
        epochs_per_batch=1,
        refill_rounds=0,
        microbatches=changes.get("microbatches", config.microbatches),
        compute_dtype=changes.get("dtype", config.compute_dtype),
        mesh=dataclasses.replace(config.mesh, **mesh),
        data=dataclasses.replace(config.data, image_share=None, answer_tokens=work.answer, **buckets),
        rollout=dataclasses.replace(config.rollout, **rollout),
        watch=WatchConfig(rollouts=False),
    )
    return Outline(config, model, setup.make_meshes(config))


def _check(work: Workload, model: ModelConfig) -> None:
    for name in ("slices", "patches", "tokens"):
        if getattr(work, name) < 1:
            raise UsageError(f"--{name} {getattr(work, name)}: must be at least 1")
    units, rest = divmod(work.patches, model.vision.merge**2)
    if rest:
        raise UsageError(f"--patches {work.patches} is not a multiple of {model.vision.merge**2}")
    if work.tokens < work.slices * units + 3:  # its start, its end and a question
        raise UsageError(f"--tokens {work.tokens} cannot hold {work.slices * units} visual tokens and a question")


def grid_of(patches: int, merge: int) -> tuple[int, int]:
    """Rows and columns of a slice with so many patches, as square as can be."""
    units = patches // merge**2
    rows = next(rows for rows in range(int(units**0.5), 0, -1) if units % rows == 0)
    return merge * rows, merge * (units // rows)


def prompt_arrays(model: ModelConfig, work: Workload, *, reverse: bool = False) -> dict[str, np.ndarray]:
    """B prompts of one video each, as the data pipeline gives them; `reverse` turns time around."""
    rng, vision = np.random.default_rng(0), model.vision
    block = VisualBlock((work.slices, *grid_of(work.patches, vision.merge)), 1.0)
    visual = block.units(vision.merge)
    encoded = []
    for _ in range(work.prompts):
        words = rng.integers(0, min(model.video_token, 512), work.tokens - visual - 2)
        video = [model.vision_start_token, *[model.video_token] * visual, model.vision_end_token]
        patches = rng.integers(0, 256, (work.slices, work.patches, vision.patch_values), np.uint8)
        tokens = np.array([*words[: len(words) // 2], *video, *words[len(words) // 2 :]], np.int32)
        encoded.append(EncodedPrompt(tokens, (block,), (patches[::-1] if reverse else patches,)))
    bucket = Bucket(work.slices, work.patches, work.tokens)
    return collate(encoded, bucket, PromptLayout.of(model), pad_token=PAD, values=vision.patch_values)


def answer_tokens(model: ModelConfig, work: Workload) -> np.ndarray:
    """[B, G, C]"""
    shape = (work.prompts, work.group, work.answer)
    return np.random.default_rng(1).integers(0, min(model.video_token, 512), shape).astype(np.int32)


def random_state(outline: Outline) -> TrainState:
    def make() -> TrainState:
        return init_state(build(outline.model, jax.random.key(0)), outline.config.optimizer)

    return _made_like(make, outline.state)


def random_weights(outline: Outline, like: Model) -> Model:
    """In the dtype and the places of `like`: the outline's policy, or its reference."""

    def make() -> Model:
        model = build(outline.model, jax.random.key(0), outline.config.compute_dtype)
        return unstack(model) if is_unstacked(like) else model

    return _made_like(make, like)


def _made_like(make: Any, like: T) -> T:
    with jax.set_mesh(jax.tree.leaves(like)[0].sharding.mesh):
        return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, like))()


def arguments(outline: Outline, program: Program) -> list[Any]:
    """Real ones, for the reference or an update."""
    model, work, mesh = outline.model, outline.workload(*outline.buckets[0]), program.mesh
    prompt, tokens = place_prompt(prompt_arrays(model, work), mesh), place_rows(answer_tokens(model, work), mesh)
    if program.phase == "reference":
        return [random_weights(outline, outline.reference), prompt, tokens]
    mask, planned = tokens >= 0, program.arguments[1]
    if isinstance(planned, Supervised):
        counted = None if planned.prompt_mask is None else prompt.mask
        return [random_state(outline), Supervised(prompt, tokens, mask, counted)]
    logps = place_rows(np.full(tokens.shape, -5.0, np.float32), mesh)
    advantages = place_rows(np.resize(np.array([1.0, -1.0], np.float32), tokens.shape[:2]), mesh)
    sampled = Completion(tokens, mask, logps, ~mask[..., 0])
    reference = None if planned.ref_logps is None else logps
    old = None if planned.old_logps is None else logps
    return [random_state(outline), Experience(prompt, sampled, advantages, reference, old)]
