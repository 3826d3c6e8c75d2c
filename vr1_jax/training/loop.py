"""The training loop, top to bottom: `train` prepares, `rl_step` and `supervised_step` are the two stages."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vr1_jax.config import TrainConfig
from vr1_jax.config_files import to_json
from vr1_jax.data.pipeline import Batch, Batches
from vr1_jax.errors import UserError
from vr1_jax.models.base import computing_in
from vr1_jax.rl.experience import slots_reached
from vr1_jax.sampling.sampler import place_prompt
from vr1_jax.sharding import place_rows
from vr1_jax.training import heldout, processes, setup
from vr1_jax.training.experience import admit, ask
from vr1_jax.training.metrics import MetricsLog, Phases, host_memory_gb, padding, progress_line, speed
from vr1_jax.training.processes import stop_on_signal
from vr1_jax.training.rollouts import forget_rollouts
from vr1_jax.training.steps import grpo_step, sft_step, split_off
from vr1_jax.types import Experience, Supervised, TrainState

log = logging.getLogger("vr1_jax")

_SPEED = ("tokens_per_second", "update_mfu", "host_memory_gb")
_SHOWN = {
    "rl": (
        "reward",
        "accuracy",
        "accuracy_shuffled",
        "length",
        "kl",
        "temporal_signal",
        "sampler_gap_mean",
        *_SPEED,
    ),
    "sft": ("loss", "grad_norm", "tokens", *_SPEED),
}


def train(config: TrainConfig) -> TrainState:
    """Run, or go on with, the run in `config.run`."""
    run = Path(config.run)
    meshes = setup.make_meshes(config)
    with processes.agreed():  # a file may be missing on one machine only
        setup.check(config, meshes)
    with ExitStack() as stack:
        stack.enter_context(computing_in(config.compute_dtype))
        stop_requested = stack.enter_context(stop_on_signal())  # first in, last out: covers the last save too
        checkpoints = stack.enter_context(setup.open_run(run, config))
        program = setup.load(config, meshes, checkpoints)
        batches = stack.enter_context(program.pipeline.batches(program.position, workers=config.data.workers))
        first = int(program.state.step) // config.updates_per_step
        metrics_log = MetricsLog(
            run,
            config.watch,
            first_step=first,
            config=to_json(config),
            writes=jax.process_index() == 0,
            restored=checkpoints.restored_metrics,
        )
        stack.callback(metrics_log.close)
        if jax.process_index() == 0:
            forget_rollouts(run, first)
        state = program.state
        for step in range(first, config.steps):
            phases = Phases()
            if config.stage == "rl":
                state, metrics = rl_step(config, program, state, batches, step, phases)
            else:
                state, metrics = supervised_step(config, program, state, batches, phases)
            done = step + 1 == config.steps
            if config.watch.evaluate_every and (done or (step + 1) % config.watch.evaluate_every == 0):
                with phases("evaluate"):
                    metrics |= heldout.evaluate(config, program, state.model)
            stopping = stop_requested()
            if done or stopping or checkpoints.due(step + 1):
                with phases("save"):
                    checkpoints.save(state, _position(batches, program), metrics)
            metrics |= {**phases.metrics(), "host_memory_gb": host_memory_gb()}
            metrics_log.write(step, metrics)
            if jax.process_index() == 0:
                print(progress_line(step + 1, config.steps, metrics, _SHOWN[config.stage]), flush=True)
            _check_health(config, metrics, step)
            if stopping and not done:
                log.warning("stopped by a signal after step %d; the same command goes on from here", step + 1)
                break
    return state


def rl_step(
    config: TrainConfig,
    program: setup.Program,
    state: TrainState,
    batches: Batches,
    step: int,
    phases: Phases,
) -> tuple[TrainState, dict[str, float]]:
    """Sample ordered and shuffled answers, judge them, compare them, update the policy."""
    mesh = program.meshes.train
    experience, asked = ask(config, program, state.model, batches, step, phases)
    with jax.set_mesh(mesh), phases("update"):
        updates = []
        for part in _minibatches(experience, config):
            state, metrics = grpo_step(
                state,
                part,
                algorithm=config.grpo,
                optimizer=config.optimizer,
                microbatches=config.microbatches,
                compute_dtype=config.compute_dtype,
            )
            updates.append(metrics)
        metrics = _over_updates(jax.device_get(updates))
    metrics = processes.mean(asked) | metrics
    tokens = metrics["sampled_tokens"] * jax.process_count()
    answers = experience.completion.tokens.shape[1:]
    return state, metrics | speed(config, state.model.config, experience.prompt, answers, tokens, phases)


def supervised_step(
    config: TrainConfig, program: setup.Program, state: TrainState, batches: Batches, phases: Phases
) -> tuple[TrainState, dict[str, float]]:
    with phases("data"):
        batch = admit(config, program, next(batches))
    mesh = program.meshes.train
    with jax.set_mesh(mesh), phases("update"):
        examples = supervised(batch, config, mesh)
        state, metrics = sft_step(
            state,
            examples,
            optimizer=config.optimizer,
            aggregation=config.sft_aggregation,
            microbatches=config.microbatches,
            compute_dtype=config.compute_dtype,
        )
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    answers = examples.tokens.shape[1:]
    metrics |= speed(config, state.model.config, examples.prompt, answers, metrics["tokens"], phases)
    return state, metrics | padding(batch.ordered, batch.answers["mask"], answers[1])


def supervised(batch: Batch, config: TrainConfig, mesh: Mesh) -> Supervised:
    """The batch with its answers, on the devices."""
    answers = place_rows({name: rows[:, None] for name, rows in batch.answers.items()}, mesh)
    slots = slots_reached(answers["mask"], config.data.answer_tokens)
    prompt_mask = answers["prompt_loss"][:, 0] if config.data.loss_on == "upstream" else None
    tokens, counted = answers["tokens"][..., :slots], answers["loss"][..., :slots]
    return Supervised(place_prompt(batch.ordered, mesh), tokens, counted, prompt_mask)


def _minibatches(experience: Experience, config: TrainConfig) -> list[Experience]:
    """Row i belongs to minibatch i mod n, for the reason that `steps` gives; passes go over all of them."""
    n = config.updates_per_batch
    parts = split_off(experience, n) if n > 1 else [experience]
    return parts * config.epochs_per_batch


def _over_updates(updates: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the updates of a step. After the first, the policy is no longer the one that sampled."""
    means = {name: float(np.mean([metrics[name] for metrics in updates])) for name in updates[0]}
    of_first = {name: float(x) for name, x in updates[0].items() if name.startswith("sampler_gap")}
    of_last = {name: float(x) for name, x in updates[-1].items() if name.startswith("skipped")}
    return means | of_first | of_last


def _position(batches: Any, program: setup.Program) -> dict[str, Any]:
    return {"data": batches.state(), "quarantined": len(program.quarantine)}


def _check_health(config: TrainConfig, metrics: dict[str, float], step: int) -> None:
    gap = metrics.get("sampler_gap_mean", 0.0)
    if gap > config.watch.gap_alarm:
        log.warning(
            "step %d: sampler and trainer disagree by %.3g nats a token (alarm at %.3g): their masks, positions "
            "or weights differ",
            step,
            gap,
            config.watch.gap_alarm,
        )
    if metrics["skipped_in_a_row"] >= config.stop_after_skips:
        raise UserError(
            f"step {step}: loss or gradient was not finite {int(metrics['skipped_in_a_row'])} steps in a row"
        )
