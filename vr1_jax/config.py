"""A run's whole configuration, composed of the narrow ones that live beside their code.

A config is a Python file with `get_config() -> TrainConfig`; the command line overrides single fields:

    python scripts/train.py --config configs/demo.py --grpo.beta 0.02 --steps 50
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from vr1_jax.config_files import parse_config
from vr1_jax.data.collate import Bucket
from vr1_jax.data.encode import ShuffleBy
from vr1_jax.data.layout import PositionRule, TimeSpacing
from vr1_jax.data.prompts import LossOn
from vr1_jax.data.prompts import Preset as PromptPreset
from vr1_jax.errors import UsageError
from vr1_jax.media.frames import IMAGE_BUDGET, TRAINING_BUDGET, FrameBudget, ImageBudget
from vr1_jax.rewards.scoring import RewardFunction, check_rewards
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.sampling.settings import SamplingConfig


@dataclass(frozen=True)
class MeshConfig:
    """Mesh axes; -1 takes what is left. `rollout_tensor` splits the weights while sampling, nothing else does."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    rollout_tensor: int = 1


@dataclass(frozen=True)
class DataConfig:
    """Where records come from and what a prompt of theirs looks like."""

    records: tuple[str, ...] = ()
    media_root: str = "."
    heldout: tuple[str, ...] = ()  # files of records that are only evaluated on; SFT needs their reasoning too
    cache: str | None = None  # written by scripts/cache_media.py
    # Of the records, which several buckets of a kind need: a file that scripts/choose_buckets.py wrote, or None to
    # read them from the media's headers when the run starts.
    sizes: str | None = None
    video_buckets: tuple[Bucket, ...] = ()
    image_buckets: tuple[Bucket, ...] = ()
    text_buckets: tuple[Bucket, ...] = ()
    # Of the steps on images or videos; texts keep the share that they are of the records. None takes all records
    # as they come, 0 leaves images out, 1 videos.
    image_share: float | None = None
    # How often records are drawn by their data_source, 1 if not named: 2 is twice in every pass, 0 never, 0.5 a
    # random half of its records.
    source_weights: dict[str, float] = field(default_factory=dict)
    pass_rate: tuple[float, float] | None = (
        None  # only records whose pass_rate lies within; see scripts/annotate.py
    )
    frames: FrameBudget = TRAINING_BUDGET
    images: ImageBudget = IMAGE_BUDGET
    positions: PositionRule = "published"
    spacing: TimeSpacing = "measured"
    prompt: PromptPreset = "fixed"
    shuffle: ShuffleBy = "frames"  # how the second group of T-GRPO sees time
    loss_on: LossOn = "answer"  # SFT
    answer_tokens: int = 1024  # SFT: longer answers are refused
    workers: int = 4
    max_bad_share: float = 0.1


@dataclass(frozen=True)
class RolloutConfig:
    group: int = 8
    shuffled_group: int = 4  # 0 is GRPO
    sampling: SamplingConfig = SamplingConfig()


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    # Updates until linear and cosine end, which may be more than a run makes: upstream's cosine spanned an epoch
    # of which it trained a sixtieth. None for constant, which has no end.
    total_steps: int | None = None
    warmup_steps: int = 0  # updates; the first has rate 0, as in transformers
    final_fraction: float = 0.0  # of the learning rate, at the end of linear and cosine
    weight_decay: float = 0.01
    # matrices: all but norms and biases. upstream: its trainer spared biases and the decoder layers' norms,
    # but decayed the vision tower's norms and the final norm.
    decayed: Literal["matrices", "upstream"] = "matrices"
    clip_norm: float = 5.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    # What Adam remembers of past gradients, beside 4 bytes of weight and 4 of gradient for each parameter:
    # float32 (8 bytes more), int8 (2) or factored (none to speak of, and no first moment: b1 means nothing).
    moments: Literal["float32", "int8", "factored"] = "float32"
    freeze_vision: bool = False  # neither update nor gradient nor moments for the vision tower

    def __post_init__(self):
        if (self.schedule == "constant") != (self.total_steps is None):
            raise UsageError(
                f"total_steps is {self.total_steps} and schedule {self.schedule}: linear and cosine need a number "
                "there, constant needs None"
            )
        if self.warmup_steps < 0:
            raise UsageError(f"warmup_steps is {self.warmup_steps}; it must not be negative")
        if self.total_steps is not None and not max(1, self.warmup_steps) <= self.total_steps:
            raise UsageError(
                f"total_steps is {self.total_steps}; it must be at least 1 and not less than warmup_steps, which "
                f"is {self.warmup_steps}"
            )
        for name in ("learning_rate", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.weight_decay < 0:
            raise UsageError(f"weight_decay is {self.weight_decay}; it must not be negative")


@dataclass(frozen=True)
class CheckpointConfig:
    """How often to save, and what to keep: more than one, for the day the last turns out damaged."""

    every: int = 100  # steps
    keep_last: int = 2
    keep_best: int = 0  # besides the last ones
    best_metric: str = "reward"  # the largest is best; for the smallest put a minus before it: -loss

    def __post_init__(self):
        for name, least in (("every", 1), ("keep_last", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not re.fullmatch(r"-?\w[\w/]*", self.best_metric):
            raise UsageError(
                f"best_metric is {self.best_metric!r}; it must be the name of a metric, or - and the name of one "
                "of which less is better"
            )


@dataclass(frozen=True)
class WatchConfig:
    """What to show besides metrics.jsonl, which is always written."""

    tensorboard: bool = False
    wandb_project: str | None = None
    rollouts: bool = True  # keep every step's answers for the report
    evaluate_every: int = 0  # steps between held-out evaluations, 0 for none
    evaluate_answers: int = 0  # to each held-out question, sampled as in training; 0: a single one, greedily
    gap_alarm: float = 0.5  # mean |sampler - trainer| log-prob above which the run warns


@dataclass(frozen=True)
class TrainConfig:
    stage: Literal["sft", "rl"]
    model: str  # a Hugging Face directory, a converted checkpoint or a run
    run: str  # directory of this run
    steps: int
    data: DataConfig
    prompts_per_step: int = 8  # over all devices
    microbatches: int = 1  # parts of a step's prompts whose gradients are added up
    updates_per_batch: int = 1  # minibatches of one batch of answers; above 1 the clip matters
    epochs_per_batch: int = 1  # passes over one batch of answers
    # What ratios are taken against: the policy before its first update, computed again by the trainer where it
    # moves before the last, or the sampler's own log-probs (then bf16 and layout differences count as movement).
    old_logps: Literal["trainer", "sampler"] = "trainer"
    sft_aggregation: Literal["token", "sequence"] = "token"  # the loss is a mean over tokens, or of answers' means
    stop_after_skips: int = 20  # in a row, of steps whose loss or gradient is not finite
    from_scratch: bool = False  # random weights; `model` gives config and tokenizer only
    # Leave groups without advantage out of the loss, KL penalty included: they only pull towards the reference.
    drop_silent_groups: bool = False
    refill_rounds: int = 0  # further batches a step may ask to replace groups without advantage
    seed: int = 0
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    mesh: MeshConfig = MeshConfig()
    rollout: RolloutConfig = RolloutConfig()
    grpo: GRPOConfig = field(default_factory=GRPOConfig.paper)
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()
    # Functions cannot be given on a command line; a config file holds them.
    rewards: Annotated[tuple[RewardFunction, ...], tyro.conf.Suppress] = ()

    def __post_init__(self):
        _check_choices(self)
        for name in (
            "stop_after_skips",
            "steps",
            "prompts_per_step",
            "microbatches",
            "updates_per_batch",
            "epochs_per_batch",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.refill_rounds < 0:
            raise UsageError(f"refill_rounds is {self.refill_rounds}; it must not be negative")
        parts = self.microbatches * self.updates_per_batch
        if self.prompts_per_step % parts:
            raise UsageError(
                f"prompts_per_step {self.prompts_per_step} does not divide into updates_per_batch "
                f"{self.updates_per_batch} x microbatches {self.microbatches}"
            )
        updates = self.steps * self.updates_per_step
        end = self.optimizer.total_steps
        if end is not None and updates > end:
            raise UsageError(
                f"steps {self.steps} make {updates} updates, but schedule {self.optimizer.schedule} ends after "
                f"optimizer.total_steps {end}: raise that too, which a run that goes on may do"
            )
        if self.stage == "sft" and self.updates_per_step > 1:
            raise UsageError("updates_per_batch and epochs_per_batch are for stage rl; in sft they must be 1")
        if self.stage == "rl" and self.from_scratch and self.grpo.beta > 0:
            raise UsageError("from_scratch leaves no reference to stay near; set grpo.beta to 0")
        if self.grpo.overlong > (limit := self.rollout.sampling.max_new_tokens):
            raise UsageError(f"grpo.overlong is {self.grpo.overlong}; answers have at most {limit} tokens")
        if self.grpo.sampler_cap and self.old_logps == "sampler":
            raise UsageError("grpo.sampler_cap weighs the trainer's log-probs; set old_logps to trainer")
        for name in ("rollout.shuffled_group", "data.workers"):
            if (value := _get(self, name)) < 0:
                raise UsageError(f"{name} is {value}; it must not be negative")
        if self.data.image_share is not None and not 0 <= self.data.image_share <= 1:
            raise UsageError(f"data.image_share is {self.data.image_share}; it must lie in 0..1")
        low, high = self.data.pass_rate or (0, 1)
        if not 0 <= low <= high <= 1:
            raise UsageError(f"data.pass_rate is {low} {high}; it must be two numbers in 0..1, the lower first")
        for source, weight in self.data.source_weights.items():
            if not 0 <= weight < float("inf"):
                raise UsageError(f"data.source_weights: {source!r} weighs {weight}; it must not be negative")
        if not self.data.records:
            raise UsageError("data.records names no file")
        if self.stage == "rl" and self.rollout.group < 2:
            raise UsageError(f"rollout.group is {self.rollout.group}; a group needs 2 answers to compare")
        check_rewards(self.rewards)

    @property
    def updates_per_step(self) -> int:
        return self.updates_per_batch * self.epochs_per_batch


def _get(config: Any, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def _check_choices(config: Any, prefix: str = "") -> None:
    """A config file may hold any text where one of a few is meant; the command line is checked by tyro."""
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_choices(value, f"{name}.")
        elif get_origin(hints[item.name]) is Literal and value not in get_args(hints[item.name]):
            raise UsageError(f"{name} is {value!r}; use one of: {', '.join(map(str, get_args(hints[item.name])))}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The file's config with command-line overrides; what tyro refuses ends the program with status 2."""
    return parse_config(TrainConfig, path, overrides, prog=f"--config {path}")
