"""The benchmarks. A new one is a function of what to measure and how often, and a line in the table at the end."""

import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from vr1_jax.config import DataConfig, TrainConfig
from vr1_jax.data.collate import Bucket, PromptLayout
from vr1_jax.data.pipeline import Batch
from vr1_jax.data.quarantine import Quarantine
from vr1_jax.data.tokenizer import load_tokenizer
from vr1_jax.errors import UsageError, UserError
from vr1_jax.media.frames import FrameBudget, ImageBudget
from vr1_jax.models.base import Model
from vr1_jax.models.flops import Workload
from vr1_jax.sampling.sampler import Sampler
from vr1_jax.tools.benchmark import inputs
from vr1_jax.tools.benchmark.inputs import Subject
from vr1_jax.tools.benchmark.timing import Stopwatch, Timing, repeat
from vr1_jax.tools.plan.programs import NEVER, PAD, Outline, Program, Sizes, programs
from vr1_jax.tools.world.model import write_random_model
from vr1_jax.tools.world.write import World, write_world
from vr1_jax.training import loop, setup
from vr1_jax.types import TrainState
from vr1_jax.weights.checkpoint_dir import assets_directory
from vr1_jax.weights.loading import load_model

Measured = tuple[dict[str, Timing], dict[str, float]]  # by phase; rates beside tokens a second

RIGHT = "<answer>A</answer>"


def measure_compile(subject: Subject) -> dict[str, dict[str, float]]:
    """Seconds to trace and to compile each program, once, and its bytes on each device. Nothing is run."""
    found = {}
    for program in programs(subject.outline):
        start = time.perf_counter()
        lowered = program.lower()
        traced = time.perf_counter()
        compiled = lowered.compile()
        seconds = {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}
        names = ("argument_bytes", "temporary_bytes", "output_bytes")
        found[program.phase] = seconds | dict(zip(names, Sizes.of(compiled), strict=True))
    return found


class Stepper:
    """The training loop's own step, with `state` before and after it, on a batch that never changes."""

    def __init__(self, outline: Outline, state: TrainState, reference: Model | None):
        self.config, self.state = outline.config, state
        batch = _batch(outline)
        self._batches = itertools.repeat(batch)
        self._run = setup.Program(  # but for the data; the tokenizer writes a word for each token
            meshes=outline.meshes,
            tokenizer=SimpleNamespace(decode=_read_answer),
            pipeline=SimpleNamespace(groups=[batch]),
            heldout=None,
            heldout_refused=None,
            quarantine=SimpleNamespace(add=lambda refusals, served: None),
            position=None,
            state=state,
            reference=reference,
            sampler=Sampler(NEVER, PAD, jax.random.key(0), outline.meshes.rollout),
        )

    def __call__(self, watch: Stopwatch) -> None:
        if self.config.stage == "sft":
            step = loop.supervised_step(self.config, self._run, self.state, self._batches, watch)
        else:
            step = loop.rl_step(self.config, self._run, self.state, self._batches, 0, watch)
        self.state, _ = jax.block_until_ready(step)
        del watch.seconds["data"]  # the batch is at hand


def _batch(outline: Outline) -> Batch:
    (kind, bucket), model = outline.buckets[0], outline.model
    work = outline.workload(kind, bucket)
    ordered, answers = inputs.prompt_arrays(model, work), inputs.answer_tokens(model, work)[:, 0]
    row = {"solution": RIGHT, "problem_type": "multiple choice", "is_video": kind == "video"}
    counted = np.ones_like(answers, bool)
    return Batch(
        step=0,
        epoch=0,
        kind=kind,
        bucket=bucket,
        ordered=ordered,
        shuffled=inputs.prompt_arrays(model, work, reverse=True) if len(outline.groups(kind)) > 1 else None,
        answers={"tokens": answers, "mask": counted, "loss": counted, "prompt_loss": ordered["mask"]},
        rows=[row] * work.prompts,
        row_ids=np.arange(work.prompts),
        refusals=[],
        media={},
    )


def _read_answer(tokens: list[int]) -> str:
    """As long as a tokenizer would make it; every other one is right."""
    words = " ".join(f"word{token}" for token in tokens)
    return f"<think>{words}</think>{RIGHT if tokens[0] % 2 == 0 else '<answer>B</answer>'}"


def measure_step(subject: Subject, repeats: int) -> Measured:
    outline = subject.outline
    reference = inputs.random_weights(outline, outline.reference) if outline.has_reference else None
    timings = repeat(Stepper(outline, inputs.random_state(outline), reference), repeats)
    return timings, {"step_seconds": sum(timing.median for timing in timings.values())}


def measure_rollout(subject: Subject, repeats: int) -> Measured:
    """Sampling alone, prompts brought to the devices as in training.

    For one token prompts are read and nothing is decoded; what whole answers take more is decoding.
    """
    outline, work = subject.outline, subject.work
    groups, whole = outline.groups(outline.buckets[0][0]), outline.config.rollout.sampling
    sampler = Sampler(NEVER, PAD, jax.random.key(0), outline.meshes.rollout)
    policy = inputs.random_weights(outline, outline.policy)
    prompts = [inputs.prompt_arrays(outline.model, work, reverse=n > 0) for n in range(len(groups))]
    lengths = {"prompts": dataclasses.replace(whole, max_new_tokens=1), "rollout": whole}

    def body(watch: Stopwatch) -> None:
        for phase, sampling in lengths.items():
            with watch(phase):
                jax.block_until_ready(sampler(policy, prompts, groups, sampling, np.arange(work.prompts)))

    timings = repeat(body, repeats)
    return timings | {"decode": timings["rollout"] - timings["prompts"]}, {}


def measure_program(phase: str, subject: Subject, repeats: int) -> Measured:
    """The log-probs of given answers, or an update on them."""
    program = _program(subject, phase)
    given = inputs.arguments(subject.outline, program)

    def body(watch: Stopwatch) -> None:
        with watch(phase):
            result = jax.block_until_ready(program(*given))
        if phase == "update":
            given[0], _ = result  # the state before was given up

    return repeat(body, repeats), {}


def _program(subject: Subject, phase: str) -> Program:
    for program in programs(subject.outline):
        if program.phase == phase:
            return program
    raise UsageError(f"this config has no {phase}: its stage is {subject.config.stage}, or grpo.beta is 0")


def token_rates(work: Workload, timings: dict[str, Timing]) -> dict[str, float]:
    """Tokens are those of every answer at its full length."""
    sampled, trained = work.rows * work.answer, work.prompts * work.group * work.answer
    tokens = {"rollout": sampled, "decode": sampled - work.rows, "reference": trained, "update": trained}
    found = {name: tokens[name] / timing.median for name, timing in timings.items() if name in tokens}
    return {f"{name}_tokens_per_second": rate for name, rate in found.items()}


def measure_load(subject: Subject, repeats: int) -> Measured:
    """A model directory onto the training mesh. After the first time it comes out of the page cache."""
    loaded, dtype, mesh = None, subject.config.compute_dtype, subject.outline.meshes.train

    def load(watch: Stopwatch) -> None:
        nonlocal loaded
        loaded = None  # two copies need not fit
        with watch("load"):
            loaded, _ = load_model(directory, dtype=dtype, mesh=mesh)
            jax.block_until_ready(loaded)

    with tempfile.TemporaryDirectory() as scratch:
        directory = subject.model or Path(scratch) / "model"
        if subject.model is None:
            write_random_model(directory, subject.outline.model, np.dtype(dtype))
        try:
            timings = repeat(load, repeats)
        except UserError as error:
            raise UsageError(str(error)) from None
    timing, size = timings["load"], sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    return timings, {"bytes": size, "bytes_per_second": size / timing.median, "first_seconds": timing.first}


def measure_data(subject: Subject, repeats: int) -> Measured:
    """Seconds that a step waits for its batch when nothing else is done: decoding, resizing, laying out."""
    with tempfile.TemporaryDirectory() as scratch:
        config = subject.file or _config_of_built_in_world(Path(scratch))
        tokenizer = load_tokenizer(assets_directory(Path(config.model)))
        layout = PromptLayout.of(setup.read_model_config(config), config.data.positions, config.data.spacing)
        quarantine = Quarantine(Path(scratch) / "quarantine.jsonl", config.data.max_bad_share)
        pipeline = setup.make_pipeline(config, config.data.records, tokenizer, layout, quarantine)
        # Workers run ahead: only after the batches they have ready is the wait the time that one takes.
        warm_up = 2 * max(config.data.workers, 1) + 2
        with pipeline.batches(workers=config.data.workers) as batches:

            def draw(watch: Stopwatch) -> None:
                with watch("data"):
                    next(batches)

            timings = repeat(draw, repeats, warm_up)
    # Single waits are long or nothing: all of them together tell the rate.
    per_second = config.prompts_per_step * repeats / sum(timings["data"].seconds)
    return timings, {"workers": config.data.workers, "prompts_per_second": per_second}


def _config_of_built_in_world(directory: Path) -> TrainConfig:
    """The demo's kind of world, and a config that reads it."""
    world = World(videos=64, images=16, heldout=0)
    write_world(directory / "world", world)
    pixels = world.size**2
    data = DataConfig(
        records=(str(directory / "world/train.json"),),
        media_root=str(directory / "world/media"),
        video_buckets=(Bucket(4, 16, 256),),
        image_buckets=(Bucket(1, 16, 256),),
        frames=FrameBudget(max_frames=8, min_pixels=pixels, max_pixels=pixels),
        images=ImageBudget(min_pixels=pixels, max_pixels=pixels),
        workers=2,
    )
    return TrainConfig("rl", str(directory / "world/tiny"), str(directory / "run"), steps=1, data=data)


BENCHMARKS: dict[str, Callable[[Subject, int], Measured]] = {
    "step": measure_step,
    "sft": measure_step,
    "rollout": measure_rollout,
    "reference": functools.partial(measure_program, "reference"),
    "update": functools.partial(measure_program, "update"),
    "load": measure_load,
    "data": measure_data,
}
