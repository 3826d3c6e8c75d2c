"""Everything that an annotation is made with."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vr1_jax.arguments import parse
from vr1_jax.config_files import parse_config, read_config
from vr1_jax.data.collate import PositionRule, TimeSpacing
from vr1_jax.data.prompts import Presentation, Preset, read_presentation
from vr1_jax.errors import UsageError
from vr1_jax.media.frames import IMAGE_BUDGET, TRAINING_BUDGET, FrameBudget, ImageBudget
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.tools.annotate.rules import KeepRules


@dataclass(frozen=True)
class AnnotateConfig:
    """What to annotate, how answers are sampled, and which are kept.

    Prompt, budgets, positions and spacing are by default those that the model was trained with.
    """

    model: Path
    records: Path
    media_root: Path
    out: Path
    samples: int = 8  # answers to each record
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = SamplingConfig(max_new_tokens=1024)
    keep: Annotated[KeepRules, tyro.conf.arg(name="")] = field(default_factory=KeepRules)
    prompt: Preset = "fixed"  # upstream's annotation worded the template as its evaluation does
    frames: FrameBudget = TRAINING_BUDGET
    images: ImageBudget = IMAGE_BUDGET
    positions: PositionRule = "published"
    spacing: TimeSpacing = "measured"
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] | None = None  # default bfloat16, on a CPU float32
    tensor: int = 1  # devices that hold the weights together
    rows: int | None = None  # records at once on one device; default by its memory
    workers: int | None = None  # processes that decode media
    force: bool = False  # replace an existing output; answers already sampled are used again

    def __post_init__(self):
        for name in ("samples", "tensor", "rows", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must be at least 0 and below 2^63")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise UsageError(f"temperature 0 gives the same answer {self.samples} times; set samples to 1")

    @property
    def asked(self) -> Presentation:
        return Presentation(self.prompt, "evaluation", self.frames, self.images, self.positions, self.spacing)


def load_annotate_config(path: str | None, overrides: Sequence[str], **settings: Any) -> AnnotateConfig:
    """Of a file and a command line; what neither names is as the model was trained. `settings` are tyro's."""
    chosen = parse_config(AnnotateConfig, path, overrides, **settings)
    from vr1_jax.weights.checkpoint_dir import assets_directory  # jax, which --help does without

    trained = read_presentation(assets_directory(chosen.model))
    told = AnnotateConfig if path is None else read_config(Path(path), AnnotateConfig)
    names = ("prompt", "frames", "images", "positions", "spacing")
    untold = [name for name in names if getattr(told, name) == getattr(AnnotateConfig, name)]
    default = dataclasses.replace(chosen, **{name: getattr(trained, name) for name in untold})
    return parse(AnnotateConfig, overrides, default=default, **settings)
