"""Built-in inputs of any shape: prompts with real layouts, random weights, answers that never stop."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import jax
import numpy as np

from vr1_jax.data.collate import Bucket, EncodedPrompt, PromptLayout, VisualBlock, collate
from vr1_jax.data.pipeline import Batch
from vr1_jax.models.base import Model, is_unstacked, unstack
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.families import build
from vr1_jax.models.flops import Workload
from vr1_jax.sampling.generate import Limits, row_keys
from vr1_jax.sampling.sampler import Sampler, place_prompt
from vr1_jax.sharding import place_rows
from vr1_jax.tools.plan.programs import NEVER, PAD, Outline, Program
from vr1_jax.training.setup import Program as Run
from vr1_jax.training.steps import init_state
from vr1_jax.types import Completion, Experience, Supervised, TrainState

T = TypeVar("T")
RIGHT = "<answer>A</answer>"


def grid_of(patches: int, merge: int) -> tuple[int, int]:
    """Rows and columns of a slice with so many patches, as square as can be."""
    units = patches // merge**2
    rows = next(rows for rows in range(int(units**0.5), 0, -1) if units % rows == 0)
    return merge * rows, merge * (units // rows)


def prompt_arrays(model: ModelConfig, work: Workload, seed: int = 0, *, reverse: bool = False) -> dict:
    """B prompts of one video each, as the data pipeline gives them; `reverse` turns time around."""
    rng, vision = np.random.default_rng(seed), model.vision
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


def answer_tokens(model: ModelConfig, work: Workload, seed: int = 1) -> np.ndarray:
    """[B, G, C]"""
    shape = (work.prompts, work.group, work.answer)
    return np.random.default_rng(seed).integers(0, min(model.video_token, 512), shape).astype(np.int32)


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
    """Real ones, for a rollout, the reference, or an update."""
    (kind, bucket), mesh = outline.buckets[0], program.mesh
    model, work = outline.model, outline.workload(kind, bucket)
    if program.phase == "rollout":
        *_, plan = program.arguments
        orders = (False, True)[: len(plan.groups)]
        prompts = tuple(place_prompt(prompt_arrays(model, work, reverse=reverse), mesh) for reverse in orders)
        rows = np.arange(work.rows, dtype=np.int32).reshape(work.prompts, -1)
        ids = place_rows(rows, mesh)
        keys = row_keys(jax.random.key(0), 0, ids)
        limits = Limits.of(outline.config.rollout.sampling)
        return [random_weights(outline, outline.policy), prompts, ids >= 0, keys, limits, plan]
    prompt, tokens = place_prompt(prompt_arrays(model, work), mesh), place_rows(answer_tokens(model, work), mesh)
    if program.phase == "reference":
        return [random_weights(outline, outline.reference), prompt, tokens]
    mask, given = tokens >= 0, program.arguments[1]
    if isinstance(given, Supervised):
        counted = None if given.prompt_mask is None else prompt.mask
        return [random_state(outline), Supervised(prompt, tokens, mask, counted)]
    logps = place_rows(np.full(tokens.shape, -5.0, np.float32), mesh)
    advantages = place_rows(np.resize(np.array([1.0, -1.0], np.float32), tokens.shape[:2]), mesh)
    sampled = Completion(tokens, mask, logps, ~mask[..., 0])
    reference = None if given.ref_logps is None else logps
    old = None if given.old_logps is None else logps
    return [random_state(outline), Experience(prompt, sampled, advantages, reference, old)]


def synthetic_run(outline: Outline, state: TrainState, reference: Model | None) -> Run:
    """What the training loop works with, but for the data. The tokenizer writes a word for each token."""
    kind, _ = outline.buckets[0]
    return Run(
        meshes=outline.meshes,
        tokenizer=SimpleNamespace(decode=_read_answer),
        pipeline=SimpleNamespace(groups=[SimpleNamespace(kind=kind)]),
        heldout=None,
        heldout_refused=None,
        quarantine=SimpleNamespace(add=lambda refusals, served: None),
        position=None,
        state=state,
        reference=reference,
        sampler=Sampler(NEVER, PAD, jax.random.key(0), outline.meshes.rollout),
    )


class SameBatch(Iterator[Batch]):
    """One batch for ever, as `data.pipeline.Batches` gives many."""

    def __init__(self, outline: Outline):
        (kind, bucket), model = outline.buckets[0], outline.model
        work = outline.workload(kind, bucket)
        ordered, answers = prompt_arrays(model, work), answer_tokens(model, work)[:, 0]
        row = {"solution": RIGHT, "problem_type": "multiple choice", "is_video": kind == "video"}
        counted = np.ones_like(answers, bool)
        self._batch = Batch(
            step=0,
            epoch=0,
            kind=kind,
            bucket=bucket,
            ordered=ordered,
            shuffled=prompt_arrays(model, work, reverse=True) if len(outline.groups(kind)) > 1 else None,
            answers={"tokens": answers, "mask": counted, "loss": counted, "prompt_loss": ordered["mask"]},
            rows=[row] * work.prompts,
            row_ids=np.arange(work.prompts),
            refusals=[],
            media={},
        )

    def __next__(self) -> Batch:
        return self._batch


def _read_answer(tokens: list[int]) -> str:
    """As long as a tokenizer would make it; every other one is right."""
    words = " ".join(f"word{token}" for token in tokens)
    return f"<think>{words}</think>{RIGHT if tokens[0] % 2 == 0 else '<answer>B</answer>'}"
