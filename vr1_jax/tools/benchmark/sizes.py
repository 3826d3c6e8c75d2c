"""What to measure: a model's dimensions and the shapes of a step, by name or from a training config."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vr1_jax.errors import UsageError
from vr1_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vr1_jax.models.flops import Workload

if TYPE_CHECKING:
    from vr1_jax.config import TrainConfig


@dataclass(frozen=True)
class Setting:
    """One benchmark's subject. The mesh is (1, -1, tensor) in training, (1, -1, rollout_tensor) in sampling."""

    name: str
    model: ModelConfig
    work: Workload
    dtype: str = "bfloat16"
    microbatches: int = 1
    tensor: int = 1
    rollout_tensor: int = 1


def _published(text: TextConfig) -> ModelConfig:
    vision = VisionConfig(32, 1280, 16, 3420, text.width, (7, 15, 23, 31), tokens_per_second=2.0)
    return ModelConfig(text, vision, 151655, 151656, 151652, 151653)


def _of_built_in_world(text: TextConfig, vision: VisionConfig) -> ModelConfig:
    return ModelConfig(text, vision, 726, 727, 723, 724)


TINY = _of_built_in_world(
    TextConfig(4, 128, 4, 2, 256, 728, (4, 6, 6), 1e6, 1e-6, tied=True),
    VisionConfig(2, 64, 4, 128, 128, (1,), tokens_per_second=2.0),
)
SMALL = _of_built_in_world(
    TextConfig(8, 384, 6, 2, 1024, 8192, (8, 12, 12), 1e6, 1e-6, tied=False),
    VisionConfig(6, 320, 4, 864, 384, (2, 5), tokens_per_second=2.0),
)
QWEN_3B = _published(TextConfig(36, 2048, 16, 2, 11008, 151936, (16, 24, 24), 1e6, 1e-6, tied=True))
QWEN_7B = _published(TextConfig(28, 3584, 28, 4, 18944, 152064, (16, 24, 24), 1e6, 1e-6, tied=False))

# 16 frames at the training budget and answers of up to 768 tokens, as configs/tgrpo_a100.py has them.
_VIDEO_STEP = Workload(prompts=8, slices=8, patches=540, tokens=1408, group=8, answer=768, shuffled_group=4)

SETTINGS = {
    "tiny": Setting("tiny", TINY, Workload(8, 4, 16, 192, 8, 48, 4), "float32"),
    "30m": Setting("30m", SMALL, Workload(1, 8, 324, 831, 8, 64, 4), "float32"),
    "3b": Setting("3b", QWEN_3B, _VIDEO_STEP, microbatches=8),
    "7b": Setting("7b", QWEN_7B, _VIDEO_STEP, microbatches=8),
}


def of_config(config: "TrainConfig", kind: str = "video") -> Setting:
    """The middle one of a kind's buckets, and the model in the config's directory."""
    from vr1_jax.data.sources import cost
    from vr1_jax.training.setup import read_model_config

    buckets = getattr(config.data, f"{kind}_buckets")
    if not buckets:
        raise UsageError(f"data.{kind}_buckets is empty; there is no such step to measure")
    bucket, rollout = sorted(buckets, key=cost)[len(buckets) // 2], config.rollout
    return Setting(
        Path(config.model).name,
        read_model_config(config),
        Workload(
            prompts=config.prompts_per_step,
            slices=bucket.slices,
            patches=bucket.patches,
            tokens=bucket.tokens,
            group=rollout.group,
            answer=rollout.sampling.max_new_tokens if config.stage == "rl" else config.data.answer_tokens,
            shuffled_group=rollout.shuffled_group if kind == "video" else 0,
        ),
        config.compute_dtype,
        config.microbatches,
        config.mesh.tensor,
        config.mesh.rollout_tensor,
    )


def changed(setting: Setting, changes: dict[str, int | str]) -> Setting:
    """With some fields replaced, those of the workload by their own names."""
    of_work = {name: value for name, value in changes.items() if name in Workload.__dataclass_fields__}
    rest = {name: value for name, value in changes.items() if name not in of_work}
    return dataclasses.replace(setting, work=dataclasses.replace(setting.work, **of_work), **rest)
