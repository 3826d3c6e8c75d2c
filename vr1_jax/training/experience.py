"""One step's experience, read top to bottom: `ask` samples, judges and scores; `refill` repeats the first two."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from vr1_jax.config import TrainConfig
from vr1_jax.data.pipeline import Batch, Batches
from vr1_jax.models.adapters import without_adapters
from vr1_jax.models.base import Model
from vr1_jax.rl.experience import Judged, Pool, judge, masked, of_attempts, texts, trim
from vr1_jax.sampling.sampler import place_prompt, rollout_params
from vr1_jax.sharding import batch_sharding, place_rows
from vr1_jax.training import setup
from vr1_jax.training.metrics import Phases
from vr1_jax.training.rollouts import write_rollouts
from vr1_jax.training.steps import cast, score_batch
from vr1_jax.types import Completion, Experience, Prompt


def ask(
    config: TrainConfig,
    program: setup.Program,
    model: Model,
    batches: Batches,
    step: int,
    phases: Phases,
) -> tuple[Experience, dict[str, float]]:
    """Sampled answers, judged and scored: all that an update needs, and metrics of the answers."""
    with phases("rollout"):
        policy = rollout_params(model, program.meshes.rollout, config.compute_dtype)
    with phases("data"):
        batch = admit(config, program, next(batches))
    if config.refill_rounds:
        rows, has_signal, metrics = refill(config, program, policy, batch, batches, step, phases)
        del policy  # its memory is the reference's
        prompt, completion, advantages = place_rows(rows, program.meshes.train)
        completion, scores = _score(config, program, model, prompt, completion)
    else:
        answers = sample(config, program, policy, batch, phases)
        del policy
        prompt, completion = _ordered(program, batch, answers)
        completion, scores = _score(config, program, model, prompt, completion)  # while the host judges
        judged = judge_answers(config, program, batch, answers, (step, 0), phases)
        advantages = place_rows(judged.signal.advantages.astype(np.float32), program.meshes.train)
        has_signal, metrics = judged.signal.has_signal, judged.metrics
    if config.drop_silent_groups or config.refill_rounds:
        completion = masked(completion, place_rows(has_signal[:, None], program.meshes.train))
    if config.grpo.mask_cut_off:
        completion = masked(completion, completion.stopped)
    with phases("reference"):
        jax.block_until_ready(scores)
    kinds = {group.kind for group in program.pipeline.groups}  # summed over steps: what the run learned from
    learned = {f"learned_{kind}": float(np.mean(has_signal)) * (kind == batch.kind) for kind in sorted(kinds)}
    return Experience(prompt, completion, advantages, *scores), metrics | learned


def refill(
    config: TrainConfig,
    program: setup.Program,
    policy: Model,
    batch: Batch,
    batches: Batches,
    step: int,
    phases: Phases,
) -> tuple[tuple[Prompt, Completion, np.ndarray], np.ndarray, dict[str, float]]:
    """Rounds of sampling and judging until a step's rows have signal, or `refill_rounds` are used up.

    The next round's batch is decoded while the devices sample, whether it will be wanted or not.
    """
    pool, sampled = Pool(config.prompts_per_step // jax.process_count()), []
    for attempt in range(1 + config.refill_rounds):
        coming = batches.refill(attempt + 1) if attempt < config.refill_rounds else None
        answers = sample(config, program, policy, batch, phases)
        judged = judge_answers(config, program, batch, answers, (step, attempt), phases)
        sampled.append(judged.metrics)
        advantages = place_rows(judged.signal.advantages.astype(np.float32), program.meshes.train)
        pool.add((*_ordered(program, batch, answers), advantages), judged.signal.has_signal)
        if coming is None or pool.is_full():
            break
        with phases("data"):
            batch = admit(config, program, coming.result())
    return *pool.take(), of_attempts(sampled)


def sample(
    config: TrainConfig, program: setup.Program, policy: Model, batch: Batch, phases: Phases
) -> list[Completion]:
    """Answers to the ordered frames, and to the shuffled ones if the batch has them."""
    arrays = [part for part in (batch.ordered, batch.shuffled) if part is not None]
    groups = (config.rollout.group, config.rollout.shuffled_group)[: len(arrays)]
    with phases("rollout"):
        answers = program.sampler(policy, arrays, groups, config.rollout.sampling, batch.row_ids, batch.step)
        return jax.block_until_ready(answers)


def judge_answers(
    config: TrainConfig,
    program: setup.Program,
    batch: Batch,
    answers: list[Completion],
    place: tuple[int, int],
    phases: Phases,
) -> Judged:
    """Rewards and advantages, on the host; with them the answers go to disk, under `place`: step and attempt."""
    with phases("reward"):
        samples = [SimpleNamespace(**row) for row in batch.rows]
        ordered, *shuffled = [texts(group, program.tokenizer.decode) for group in answers]
        limit = config.rollout.sampling.max_new_tokens
        against = shuffled[0] if shuffled else None
        judged = judge(config.grpo, samples, ordered, against, config.rewards, limit=limit)
        if config.watch.rollouts:
            write_rollouts(Path(config.run), (*place, jax.process_index()), samples, judged, answers)
    return judged


def _ordered(program: setup.Program, batch: Batch, answers: list[Completion]) -> tuple[Prompt, Completion]:
    """What is learned from, on the training mesh."""
    mesh = program.meshes.train
    return place_prompt(batch.ordered, mesh), jax.device_put(answers[0], batch_sharding(mesh))


def _score(
    config: TrainConfig, program: setup.Program, model: Model, prompt: Prompt, completion: Completion
) -> tuple[Completion, tuple[jax.Array | None, jax.Array | None]]:
    """The completion without slots that no answer reached; its log-probs by the reference, and by the policy as it
    is if it will have moved before they are used."""
    if config.grpo.aggregation != "constant":  # which divides by all slots
        completion = trim(completion, config.rollout.sampling.capacity)
    with jax.set_mesh(program.meshes.train):
        score = functools.partial(
            score_batch, prompt=prompt, tokens=completion.tokens, microbatches=config.microbatches
        )
        reference = program.reference
        if config.lora.rank and config.grpo.beta > 0:
            reference = without_adapters(model)
        reference = None if reference is None else score(reference).logps
        if config.old_logps == "sampler":
            old = completion.logps
        elif config.updates_per_step > 1:
            old = score(cast(model, config.compute_dtype)).logps
        else:
            old = None  # the policy is still the one that sampled: ratios are 1
    return completion, (reference, old)


def admit(config: TrainConfig, program: setup.Program, batch: Batch) -> Batch:
    served = (batch.step + 1) * config.prompts_per_step // jax.process_count()  # by this process
    program.quarantine.add(batch.refusals, served=served)
    return batch
