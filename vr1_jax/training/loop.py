"""The training loop, top to bottom: `train` prepares, `rl_step` and `supervised_step` are the two stages."""

import dataclasses
import logging
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vr1_jax.config import TrainConfig
from vr1_jax.data.pipeline import Batch
from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.rl.experience import Judged, judge, place, place_rows, texts, trim
from vr1_jax.sampling.placement import rollout_params
from vr1_jax.sharding import batch_sharding
from vr1_jax.training import heldout, setup
from vr1_jax.training.metrics import MetricsLog, Phases, host_memory_gb, progress_line
from vr1_jax.training.rollouts import write_rollouts
from vr1_jax.training.steps import cast, grpo_step, score_batch, sft_step
from vr1_jax.training.stopping import stop_on_signal
from vr1_jax.types import Experience, Supervised, TrainState

log = logging.getLogger("vr1_jax")

_SHOWN = {
    "rl": ("reward", "accuracy", "accuracy_shuffled", "length", "kl", "temporal_signal", "sampler_gap_mean"),
    "sft": ("loss", "grad_norm", "tokens"),
}


def train(config: TrainConfig) -> TrainState:
    """Run, or go on with, the run in `config.run`."""
    run = Path(config.run)
    meshes = setup.make_meshes(config)
    setup.check(config, meshes)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(setup.open_run(run, config))
        program = setup.load(config, meshes, checkpoints)
        stop_requested = stack.enter_context(stop_on_signal())
        batches = stack.enter_context(program.pipeline.batches(program.position, workers=config.data.workers))
        first = int(program.state.step) // config.updates_per_step
        metrics_log = MetricsLog(
            run, config.watch, first_step=first, config=setup.describe(config), writes=jax.process_index() == 0
        )
        stack.callback(metrics_log.close)
        state, reference = program.state, program.reference
        for step in range(first, config.steps):
            phases = Phases()
            with phases("data"):
                batch = next(batches)
                program.quarantine.add(batch.refusals, served=(step + 1) * config.prompts_per_step)
            if config.stage == "rl":
                state, metrics = rl_step(config, program, reference, state, batch, step, phases)
            else:
                state, metrics = supervised_step(config, program.meshes.train, state, batch, phases)
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
    reference: Qwen25VL | None,
    state: TrainState,
    batch: Batch,
    step: int,
    phases: Phases,
) -> tuple[TrainState, dict[str, float]]:
    """Sample ordered and shuffled answers, judge them, compare them, update the policy."""
    mesh, microbatches = program.meshes.train, config.microbatches
    samples = [SimpleNamespace(**row) for row in batch.rows]
    with phases("rollout"):
        policy = rollout_params(state.model, program.meshes.rollout, config.compute_dtype)
        arrays = [part for part in (batch.ordered, batch.shuffled) if part is not None]
        groups = (config.rollout.group, config.rollout.shuffled_group)[: len(arrays)]
        answers = program.sampler(policy, arrays, groups, config.rollout.sampling, batch.row_ids, step)
        answers = jax.block_until_ready(answers)
        del policy  # its memory is the update's

    with jax.set_mesh(mesh):
        prompt = place(batch.ordered, mesh)
        completion = trim(jax.device_put(answers[0], batch_sharding(mesh)), config.rollout.sampling.capacity)
        # Dispatched now, these run on the devices while the host reads and judges the answers.
        ref_logps = old_logps = None
        if reference is not None:
            ref_logps = score_batch(reference, prompt, completion.tokens, microbatches=microbatches).logps
        if config.updates_per_step > 1:
            computed = cast(state.model, config.compute_dtype)
            old_logps = score_batch(computed, prompt, completion.tokens, microbatches=microbatches).logps

        with phases("reward"):
            read = [texts(group, program.tokenizer.decode) for group in answers]
            judged = judge(config.grpo, samples, read[0], read[1] if len(read) > 1 else None, config.rewards)
            if config.watch.rollouts:
                write_rollouts(Path(config.run), step, jax.process_index(), samples, judged, answers)
        with phases("reference"):
            jax.block_until_ready((ref_logps, old_logps))

        with phases("update"):
            advantages = place_rows(judged.signal.advantages.astype(np.float32), mesh)
            experience = Experience(prompt, completion, advantages, ref_logps, old_logps)
            if config.drop_silent_groups:
                experience = _silence(experience, judged, mesh)
            for part in _minibatches(experience, config):
                state, metrics = grpo_step(
                    state,
                    part,
                    algorithm=config.grpo,
                    optimizer=config.optimizer,
                    microbatches=microbatches,
                    compute_dtype=config.compute_dtype,
                )
            metrics = jax.device_get(metrics)
    return state, {**setup.mean_over_processes(judged.metrics), **_floats(metrics)}


def supervised_step(
    config: TrainConfig, mesh: Mesh, state: TrainState, batch: Batch, phases: Phases
) -> tuple[TrainState, dict[str, float]]:
    with jax.set_mesh(mesh), phases("update"):
        state, metrics = sft_step(
            state,
            supervised(batch, config, mesh),
            optimizer=config.optimizer,
            microbatches=config.microbatches,
            compute_dtype=config.compute_dtype,
        )
        metrics = jax.device_get(metrics)
    return state, _floats(metrics)


def supervised(batch: Batch, config: TrainConfig, mesh: Mesh) -> Supervised:
    """The batch with its answers, on the devices."""
    answers = place_rows(batch.answers, mesh)
    prompt_mask = answers["prompt_loss"] if config.data.loss_on == "upstream" else None
    tokens, counted = answers["tokens"][:, None], answers["loss"][:, None]
    return Supervised(place(batch.ordered, mesh), tokens, counted, prompt_mask)


def _silence(experience: Experience, judged: Judged, mesh: Mesh) -> Experience:
    """Mask the answers of groups whose advantages are all zero: they would only pull towards the reference."""
    keep = place_rows(judged.signal.has_signal, mesh)
    mask = experience.completion.mask & keep[:, None, None]
    return dataclasses.replace(experience, completion=dataclasses.replace(experience.completion, mask=mask))


def _minibatches(experience: Experience, config: TrainConfig) -> list[Experience]:
    """Row i belongs to minibatch i mod n, for the reason that `steps` gives; passes go over all of them."""
    n = config.updates_per_batch
    parts = [jax.tree.map(lambda x, i=i: x[i::n], experience) for i in range(n)] if n > 1 else [experience]
    return parts * config.epochs_per_batch


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
        raise setup.TrainingError(
            f"step {step}: loss or gradient was not finite {int(metrics['skipped_in_a_row'])} steps in a row"
        )


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
