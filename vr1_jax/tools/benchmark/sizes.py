"""What to measure: a training config with the shapes of one step, of a built-in size or from a file."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vr1_jax.config import DataConfig, TrainConfig, WatchConfig, load_config
from vr1_jax.data.collate import Bucket
from vr1_jax.data.sources import cost
from vr1_jax.errors import UsageError
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.flops import Workload
from vr1_jax.models.qwen25vl import PUBLISHED
from vr1_jax.tools.plan.programs import Outline
from vr1_jax.tools.world.model import SMALL, TINY
from vr1_jax.training import setup

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
    buckets = getattr(config.data, f"{kind}_buckets")
    if not buckets:
        raise UsageError(f"data.{kind}_buckets is empty; there is no such step to measure")
    bucket, model = sorted(buckets, key=cost)[len(buckets) // 2], setup.read_model_config(config)
    work = Outline(config, model, setup.make_meshes(config)).workload(kind, bucket)
    directory = Path(config.model)
    return Subject(directory.name, _outline(config, model, kind, work, changes), file, directory)


def _outline(
    config: TrainConfig, model: ModelConfig, kind: str, work: Workload, changes: dict[str, Any]
) -> Outline:
    of_work = {name: value for name, value in changes.items() if name in Workload.__dataclass_fields__}
    work = dataclasses.replace(work, **of_work)
    _check(work, model)
    buckets = {f"{each}_buckets": () for each in ("video", "image", "text")}
    buckets[f"{kind}_buckets"] = (Bucket(work.slices, work.patches, work.tokens),)
    mesh = {name: changes[name] for name in ("tensor", "rollout_tensor") if name in changes}
    sampling = dataclasses.replace(config.rollout.sampling, max_new_tokens=work.answer)
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
        rollout=dataclasses.replace(
            config.rollout, group=work.group, shuffled_group=work.shuffled_group, sampling=sampling
        ),
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
