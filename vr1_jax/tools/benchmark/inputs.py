"""Built-in inputs of any shape: prompts with real layouts, random weights, answers that never stop."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vr1_jax.config import OptimizerConfig
from vr1_jax.data.collate import Bucket, EncodedPrompt, collate
from vr1_jax.data.layout import PromptLayout, VisualBlock
from vr1_jax.errors import UsageError
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.flops import Workload
from vr1_jax.models.qwen25vl import Qwen25VL, abstract_model
from vr1_jax.rl.experience import place, place_rows
from vr1_jax.sharding import TRAIN_RULES, Rules, make_mesh, shardings
from vr1_jax.tools.benchmark.sizes import Setting
from vr1_jax.training.steps import init_state
from vr1_jax.types import Completion, Experience, Supervised, TrainState

OPTIMIZER = OptimizerConfig()


@dataclass(frozen=True)
class Meshes:
    train: Mesh
    rollout: Mesh

    @classmethod
    def of(cls, setting: Setting) -> "Meshes":
        return cls(make_mesh(tensor=setting.tensor), make_mesh(tensor=setting.rollout_tensor))


def grid_of(patches: int, merge: int) -> tuple[int, int]:
    """Rows and columns of a slice with so many patches, as square as can be."""
    units, rest = divmod(patches, merge**2)
    if rest:
        raise UsageError(f"--patches {patches} is not a multiple of {merge**2}")
    rows = next(rows for rows in range(int(units**0.5), 0, -1) if units % rows == 0)
    return merge * rows, merge * (units // rows)


def prompt_arrays(model: ModelConfig, work: Workload, seed: int = 0, *, reverse: bool = False) -> dict:
    """B prompts of one video each, as the data pipeline gives them; `reverse` turns time around."""
    rng, vision = np.random.default_rng(seed), model.vision
    block = VisualBlock((work.slices, *grid_of(work.patches, vision.merge)), 1.0)
    visual = block.units(vision.merge)
    text = work.tokens - visual - 2
    if text < 1:
        raise UsageError(f"--tokens {work.tokens} cannot hold {visual} visual tokens and a question")
    encoded = []
    for _ in range(work.prompts):
        words = rng.integers(0, min(model.video_token, 512), text)
        video = [model.vision_start_token, *[model.video_token] * visual, model.vision_end_token]
        patches = rng.integers(0, 256, (work.slices, work.patches, vision.patch_values), np.uint8)
        tokens = np.array([*words[: text // 2], *video, *words[text // 2 :]], np.int32)
        encoded.append(EncodedPrompt(tokens, (block,), (patches[::-1] if reverse else patches,)))
    bucket = Bucket(work.slices, work.patches, work.tokens)
    return collate(encoded, bucket, PromptLayout.of(model), pad_token=0, values=vision.patch_values)


def answer_tokens(model: ModelConfig, work: Workload, seed: int = 1) -> np.ndarray:
    """[B, G, C]"""
    shape = (work.prompts, work.group, work.answer)
    return np.random.default_rng(seed).integers(0, min(model.video_token, 512), shape).astype(np.int32)


def random_model(model: ModelConfig, dtype: str, rules: Rules, mesh: Mesh) -> Qwen25VL:
    where = shardings(abstract_model(model, dtype), rules, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(lambda: Qwen25VL(model, jax.random.key(0), dtype), out_shardings=where)()


def random_state(model: ModelConfig, mesh: Mesh) -> TrainState:
    def make():
        return init_state(Qwen25VL(model, jax.random.key(0)), OPTIMIZER)

    with jax.set_mesh(mesh):
        return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), TRAIN_RULES, mesh))()


def experience(setting: Setting, mesh: Mesh) -> Experience:
    """Random answers of full length, some better than others."""
    work = setting.work
    tokens = answer_tokens(setting.model, work)
    logps = np.full(tokens.shape, -5.0, np.float32)
    advantages = np.resize(np.array([1.0, -1.0], np.float32), tokens.shape[:2])
    sampled = Completion(*place_rows((tokens, tokens >= 0, logps, np.zeros(tokens.shape[:2], bool)), mesh))
    prompt = place(prompt_arrays(setting.model, work), mesh)
    return Experience(prompt, sampled, *place_rows((advantages, logps), mesh), None)


def supervised(setting: Setting, mesh: Mesh) -> Supervised:
    tokens = answer_tokens(setting.model, setting.work)[:, :1]
    placed = place_rows((tokens, np.ones_like(tokens, bool)), mesh)
    return Supervised(place(prompt_arrays(setting.model, setting.work), mesh), *placed, None)


def questions(prompts: int) -> list[SimpleNamespace]:
    """What rewards need to know of the records."""
    question = SimpleNamespace(solution="<answer>A</answer>", problem_type="multiple choice", is_video=True)
    return [question] * prompts


def read_answer(tokens: list[int]) -> str:
    """A text of some words for each token, as long as a tokenizer would make it; every other one is right."""
    words = " ".join(f"word{token}" for token in tokens)
    return f"<think>{words}</think><answer>{'AB'[tokens[0] % 2]}</answer>"


def active_rows(work: Workload) -> jax.Array:
    return jnp.ones((work.prompts, work.group + work.shuffled_group), bool)
