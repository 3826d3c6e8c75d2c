"""The compiled steps: reference log-probs, and the policy update.

Both go over a batch in microbatches of prompts. Row i of a batch of B belongs to microbatch i mod n, so that
every device finds its own share of each microbatch among the rows it already holds.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vr1_jax.config import OptimizerConfig
from vr1_jax.models import base
from vr1_jax.models.base import Model
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.rl.logprobs import TokenScores, score_completions, score_tokens
from vr1_jax.rl.loss import loss_denominator, policy_loss
from vr1_jax.sharding import TRAIN_RULES, constrain, shard
from vr1_jax.training.optimizer import make_optimizer, trained, with_frozen
from vr1_jax.types import Experience, Prompt, Supervised, TrainState

Metrics = dict[str, Float[Array, ""]]


def cast(tree: Any, dtype: DTypeLike) -> Any:
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), tree)


def init_state(model: Model, optimizer: OptimizerConfig) -> TrainState:
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))  # not one zero thrice: the state is donated
    return TrainState(model, make_optimizer(optimizer).init(trained(model, optimizer)), *counters)


@functools.partial(jax.jit, static_argnames="microbatches")
def score_batch(model: Model, prompt: Prompt, tokens: jax.Array, *, microbatches: int = 1) -> TokenScores:
    """Log-probs of completions as they are: for the reference, and for the policy before an update."""
    scores = jax.lax.map(lambda x: score_completions(model, *x), split_rows((prompt, tokens), microbatches))
    return join_rows(scores)


@functools.partial(
    jax.jit,
    static_argnames=("algorithm", "optimizer", "microbatches", "compute_dtype"),
    donate_argnames="state",
)
def grpo_step(
    state: TrainState,
    experience: Experience,
    *,
    algorithm: GRPOConfig,
    optimizer: OptimizerConfig,
    microbatches: int = 1,
    compute_dtype: DTypeLike = jnp.bfloat16,
) -> tuple[TrainState, Metrics]:
    """One policy update. The gradient is the whole batch's, whatever the number of microbatches."""
    denominator = loss_denominator(experience.completion.mask, algorithm.aggregation)

    def loss(model: Model, part: Experience) -> tuple[jax.Array, Metrics]:
        completion = part.completion
        scores = score_completions(cast(model, compute_dtype), part.prompt, completion.tokens)
        value, metrics = policy_loss(
            scores.logps,
            part.old_logps,
            part.ref_logps,
            part.advantages,
            completion.mask,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            beta=algorithm.beta,
            aggregation=algorithm.aggregation,
            ratio=algorithm.ratio,
            dual_clip=algorithm.dual_clip,
            sampler_logps=completion.logps,
            sampler_cap=algorithm.sampler_cap,
            denominator=denominator,
        )
        gap = jnp.abs(jnp.where(completion.mask, scores.logps - completion.logps, 0.0))
        tokens = jnp.maximum(metrics["tokens"], 1)
        metrics["entropy"] = jnp.where(completion.mask, scores.entropy, 0.0).sum() / tokens
        metrics["sampler_gap_mean"], metrics["sampler_gap_max"] = gap.sum() / tokens, gap.max()
        return value, jax.tree.map(jax.lax.stop_gradient, metrics)

    grads, value, metrics = accumulate(loss, state.model, split_rows(experience, microbatches), optimizer)
    state, update_metrics = apply_gradients(state, grads, value, optimizer)
    return state, {"loss": value, **metrics, **update_metrics}


@functools.partial(
    jax.jit,
    static_argnames=("optimizer", "aggregation", "microbatches", "compute_dtype"),
    donate_argnames="state",
)
def sft_step(
    state: TrainState,
    batch: Supervised,
    *,
    optimizer: OptimizerConfig,
    aggregation: Literal["token", "sequence"] = "token",
    microbatches: int = 1,
    compute_dtype: DTypeLike = jnp.bfloat16,
) -> tuple[TrainState, Metrics]:
    """One supervised update: the mean over all tokens that the loss counts, or over sequences of their means."""
    total, sequences = jnp.maximum(batch.token_counts().sum(), 1), batch.tokens.shape[0]

    def loss(model: Model, part: Supervised) -> tuple[jax.Array, Metrics]:
        values, metrics = supervised_losses(cast(model, compute_dtype), part)
        if aggregation == "sequence":
            return (values / jnp.maximum(part.token_counts(), 1)).sum() / sequences, metrics
        return values.sum() / total, metrics

    grads, value, metrics = accumulate(loss, state.model, split_rows(batch, microbatches), optimizer)
    state, update_metrics = apply_gradients(state, grads, value, optimizer)
    return state, {"loss": value, **metrics, **update_metrics}


def supervised_losses(model: Model, batch: Supervised) -> tuple[Float[Array, " B"], Metrics]:
    """Of each sequence, summed negative log-probs of its target, and of its prompt where the mask says so."""
    of_prompt, of_targets = base.forward_completions(model, batch.prompt, batch.tokens)
    scores = score_tokens(model, of_targets, batch.tokens)
    values = -jnp.where(batch.mask, scores.logps, 0.0).sum((1, 2))
    if batch.prompt_mask is not None:
        following = batch.prompt.tokens[:, None, 1:]
        prompt_logps = score_tokens(model, of_prompt[:, None, :-1], following).logps[:, 0]
        values -= jnp.where(batch.prompt_mask[:, 1:], prompt_logps, 0.0).sum(1)
    return values, {
        "tokens": batch.token_counts().sum(),
        "entropy": jnp.where(batch.mask, scores.entropy, 0.0).sum() / batch.mask.sum(),
    }


def apply_gradients(
    state: TrainState, grads: Model, loss: jax.Array, optimizer: OptimizerConfig
) -> tuple[TrainState, Metrics]:
    """Update, unless the loss or the gradient is not finite: then only the step is counted."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)

    before = trained(state.model, optimizer), state.opt_state
    updates, opt_state = make_optimizer(optimizer).update(grads, state.opt_state, before[0])
    after = optax.apply_updates(before[0], updates), opt_state
    # Element by element, in the loop that updates: around a `lax.cond` GPUs' compilers copy all of the state.
    after, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
    model, opt_state = constrain((with_frozen(after, state.model), opt_state), TRAIN_RULES)
    state = TrainState(model, opt_state, state.step + 1, state.skipped + ~finite, in_a_row)
    return state, {"grad_norm": norm, "skipped": state.skipped, "skipped_in_a_row": in_a_row}


def accumulate(loss, model, parts, optimizer: OptimizerConfig):
    """Sums of gradients and losses over microbatches; metrics combined by what their names say."""
    moving = trained(model, optimizer)

    def loss_of(moving, part):
        return loss(with_frozen(moving, model), part)

    def add(total, part):
        (value, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(moving, part)
        grads, value = jax.tree.map(jnp.add, total, (grads, value))
        return (grads, value), metrics

    zeros = (jax.tree.map(jnp.zeros_like, moving), jnp.float32(0))
    (grads, value), metrics = jax.lax.scan(add, zeros, parts)
    tokens = metrics["tokens"]
    return grads, value, {name: _combine(name, x, tokens) for name, x in metrics.items()}


def _combine(name: str, values: Float[Array, " n"], tokens: Float[Array, " n"]) -> Float[Array, ""]:
    if name == "tokens":
        return values.sum()
    if name.endswith("_max"):
        return values.max()
    if name.endswith("_min"):
        return values.min()
    return (values * tokens).sum() / jnp.maximum(tokens.sum(), 1)


def split_rows(tree: Any, microbatches: int) -> Any:
    """[B, ...] -> [n, B/n, ...], row i to microbatch i mod n. Arrays may be empty: a text has no patches."""

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(len(x) // microbatches, microbatches, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, tree)


@functools.partial(jax.jit, static_argnames="parts")
def split_off(batch: Any, parts: int) -> list[Any]:
    """Minibatches, row i in that of number i mod n. Compiled: plain slicing leaves them whole on each device."""
    return [jax.tree.map(lambda x, n=n: shard(x[n::parts], "batch"), batch) for n in range(parts)]


def join_rows(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)
