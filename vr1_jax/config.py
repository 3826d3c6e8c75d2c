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
from vr1_jax.data.collate import Bucket, PositionRule, TimeSpacing
from vr1_jax.data.encode import ShuffleBy
from vr1_jax.data.prompts import LossOn
from vr1_jax.data.prompts import Preset as PromptPreset
from vr1_jax.errors import UsageError
from vr1_jax.media.frames import IMAGE_BUDGET, TRAINING_BUDGET, FrameBudget, ImageBudget
from vr1_jax.models.config import LoraConfig
from vr1_jax.rewards.scoring import RewardFunction, check_rewards
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.sampling.settings import SamplingConfig


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis of the mesh has; -1 is all that the other axes leave."""

    data: int = 1  # whole copies of the weights, each with its part of the batch
    fsdp: int = -1  # devices that split the weights between them, each with its part of the batch
    tensor: int = 1  # devices that share the arithmetic of each layer in training
    rollout_tensor: int = 1  # devices that share the arithmetic of each layer while answers are sampled


@dataclass(frozen=True)
class DataConfig:
    """Where records come from and what a prompt of theirs looks like."""

    records: tuple[str, ...] = ()  # files of training records
    media_root: str = "."  # directory that the records' paths are relative to
    heldout: tuple[str, ...] = ()  # files of records that are only evaluated on; in SFT with their reasoning
    cache: str | None = None  # directory of decoded media that scripts/cache_media.py wrote
    # File of the records' sizes that scripts/choose_buckets.py wrote. Sizes are needed where a kind (image, video,
    # text) has several buckets; None reads them from the media's headers when the run starts.
    sizes: str | None = None
    video_buckets: tuple[Bucket, ...] = ()  # the shapes that prompts with a video are padded to
    image_buckets: tuple[Bucket, ...] = ()  # the shapes that prompts with an image are padded to
    text_buckets: tuple[Bucket, ...] = ()  # the shapes that prompts without media are padded to
    # Share of image steps among the steps on images and videos: with 0.5, as many steps on images as on videos; 0
    # leaves images out, 1 videos. None: as many as there are records. Text steps are as many as there are records.
    image_share: float | None = None
    # How often a record is drawn in each pass over the data, by its data_source: 2 is twice, 0.5 a random half of
    # the source's records, 0 never. Sources that are not named have 1.
    source_weights: dict[str, float] = field(default_factory=dict)
    # Only records whose pass_rate (see scripts/annotate.py) lies between these two, ends included: 0.1 0.9.
    pass_rate: tuple[float, float] | None = None
    frames: FrameBudget = TRAINING_BUDGET
    images: ImageBudget = IMAGE_BUDGET
    # Where the text after an image or video goes on. published: after its largest position on any axis, as
    # Qwen2.5-VL was trained. transformers5: after the larger of its height and width, for comparison.
    positions: PositionRule = "published"
    # How long a slice of a video is, as positions see it. measured: as in the file. constant: one second, as
    # upstream trained.
    spacing: TimeSpacing = "measured"
    prompt: PromptPreset = "fixed"  # the words around a question; upstream's differ in SFT and evaluation
    # What T-GRPO's second group sees in another order: single frames, or slices (pairs of frames).
    shuffle: ShuffleBy = "frames"
    # SFT: the tokens that the loss counts. upstream: the question and the video's placeholders too.
    loss_on: LossOn = "answer"
    answer_tokens: int = 1024  # SFT: records with longer answers are refused
    workers: int = 4  # processes that decode and tokenize
    max_bad_share: float = 0.1  # share of records that cannot be used above which the run stops


@dataclass(frozen=True)
class RolloutConfig:
    """How many answers are sampled to each question."""

    group: int = 8  # answers with the frames in order
    shuffled_group: int = 4  # answers with the frames shuffled; 0 is GRPO
    sampling: SamplingConfig = SamplingConfig()


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate. An update is one step of the optimizer; a training step can have several."""

    learning_rate: float = 1e-6  # the rate after the warm-up, before it falls
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # how the rate falls after the warm-up
    # Updates until the linear and cosine schedules end, which may be more than a run makes: upstream's cosine
    # ended after a whole epoch, of which it trained a sixtieth. None for constant, which has no end.
    total_steps: int | None = None
    warmup_steps: int = 0  # updates in which the rate grows to learning_rate; the first has rate 0
    final_fraction: float = 0.0  # the rate at the end of linear and cosine, as a fraction of learning_rate
    weight_decay: float = 0.01  # decoupled from the gradient; times the learning rate in each update
    # Which parameters decay. matrices: all but norms and biases. upstream: all but biases and the decoder layers'
    # norms, so the vision tower's norms and the final norm decay.
    decayed: Literal["matrices", "upstream"] = "matrices"
    clip_norm: float = 5.0  # gradients with a larger global norm are scaled down to it
    b1: float = 0.9  # Adam's decay of the first moment
    b2: float = 0.999  # Adam's decay of the second moment
    eps: float = 1e-8  # Adam's term in the denominator
    # How Adam's moments are kept, beside 4 bytes of weight and 4 of gradient for each parameter: float32 (8 bytes
    # more), int8 (2 more), or factored (almost none; there is no first moment then, and b1 has no effect).
    moments: Literal["float32", "int8", "factored"] = "float32"
    freeze_vision: bool = False  # leave the vision tower as it is, which saves its gradient and moments

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
    """How often checkpoints are saved, and how many are kept: more than one, in case the last is damaged."""

    every: int = 100  # steps between checkpoints
    keep_last: int = 2  # how many of the newest checkpoints are kept
    keep_best: int = 0  # how many of the best checkpoints are kept besides
    best_metric: str = "reward"  # the metric whose largest value is best; -loss: whose smallest value is

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

    tensorboard: bool = False  # write the metrics for TensorBoard too
    wandb_project: str | None = None  # send the metrics to this Weights & Biases project too
    rollouts: bool = True  # keep every step's answers for the report
    evaluate_every: int = 0  # steps between evaluations on data.heldout; 0 for none
    evaluate_answers: int = 0  # answers sampled to each held-out question; 0: one, always the most likely token
    gap_alarm: float = 0.5  # mean difference of the sampler's and trainer's log-probs above which the run warns


@dataclass(frozen=True)
class TrainConfig:
    """What a run trains, on what, and how."""

    stage: Literal["sft", "rl"]  # supervised fine-tuning, or T-GRPO and GRPO
    model: str  # a Hugging Face directory, a converted checkpoint or a run
    run: str  # directory of this run
    steps: int  # how many steps to train
    data: DataConfig
    prompts_per_step: int = 8  # prompts in a step, over all devices
    microbatches: int = 1  # parts that a step's prompts are computed in, to save memory; their gradients are added
    # Updates made with one batch of answers, each with its part of the prompts. Above 1 the policy moves away from
    # the one that answered, and the clip matters.
    updates_per_batch: int = 1
    epochs_per_batch: int = 1  # passes over one batch of answers
    # Whose log-probs the policy's ratio is taken against: the trainer's, computed anew before the first update if
    # there are several, or the sampler's own, whose other precision and layout then count as movement.
    old_logps: Literal["trainer", "sampler"] = "trainer"
    # SFT: the loss is the mean over all tokens, or the mean over answers of each answer's mean.
    sft_aggregation: Literal["token", "sequence"] = "token"
    stop_after_skips: int = 20  # steps in a row without a finite loss and gradient after which the run stops
    from_scratch: bool = False  # begin with random weights; `model` gives config and tokenizer only
    # Leave groups whose answers all have the same reward out of the loss, KL penalty included: such a group only
    # pulls towards the reference model.
    drop_silent_groups: bool = False
    refill_rounds: int = 0  # further batches that a step may sample to replace groups of equal rewards
    seed: int = 0  # of everything random: order of records, shuffled frames, sampled answers
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # precision of the arithmetic; weights are float32
    mesh: MeshConfig = MeshConfig()
    rollout: RolloutConfig = RolloutConfig()
    grpo: GRPOConfig = field(default_factory=GRPOConfig.paper)
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = LoraConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()
    # Reward functions of your own, beside accuracy and format; in a config file only.
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
        if self.lora.rank and self.from_scratch:
            raise UsageError("from_scratch leaves lora nothing to adapt; set lora.rank to 0")
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
