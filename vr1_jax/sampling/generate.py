"""Sampling answers: one jit reads the prompts once, then a while loop writes all their completions.

`generate` is `start` (vision tower, prefill, first token) followed by `advance` (decode until all rows have
stopped); a caller that wants to watch calls them itself and advances a few tokens at a time.

Groups that share a batch are sampled together: for T-GRPO `prompts` are (ordered, shuffled) and `groups`
(8, 4). Rows come back in that order along the G axis; `split_groups` takes them apart.

Rows that have stopped keep their place until the last one stops: with answers of 380 tokens on average and at
most 768, half of all row-steps (simulated). Modelled from step times, moving the others together would save
40% where a step's time grows with its rows, but 5% where it is the time to read the weights, as with a few
dozen rows on an accelerator; there, refilling freed rows would lose 40%, for fewer rows take more steps. So
rows stay.
"""

import dataclasses
import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vr1_jax.models import attention, base
from vr1_jax.models.base import Model
from vr1_jax.sampling import logits as sampling_logits
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.sharding import shard
from vr1_jax.types import Completion, KVCache, Prompt, PromptCache, pytree

# A loop of its own for less than this costs more to compile than it saves.
_SHORTEST_CACHE = 64


@dataclass(frozen=True)
class Plan:
    """The static part of sampling: what a compiled program is made for."""

    groups: tuple[int, ...]
    capacity: int
    stop_tokens: tuple[int, ...]
    pad_token: int
    top_k: int = 0
    penalize: bool = False
    truncated_logps: bool = False  # also of the truncated distribution; sorts the vocabulary at every step

    @classmethod
    def of(
        cls,
        config: SamplingConfig,
        groups: tuple[int, ...],
        stop_tokens: tuple[int, ...],
        pad_token: int,
        *,
        truncated_logps: bool = False,
    ) -> "Plan":
        penalize = config.repetition_penalty != 1.0
        return cls(groups, config.capacity, stop_tokens, pad_token, config.top_k, penalize, truncated_logps)


@pytree
class Limits:
    """The dynamic part: changing it compiles nothing."""

    max_new_tokens: Int[Array, ""]
    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]

    @classmethod
    def of(cls, config: SamplingConfig) -> "Limits":
        return cls(
            jnp.int32(config.max_new_tokens),
            jnp.float32(config.temperature),
            jnp.float32(config.top_p),
            jnp.float32(config.repetition_penalty),
        )


@pytree
class SamplingState:
    """Completions in the making. Slot `step - 1` holds the newest token, not yet fed to the model."""

    step: Int[Array, ""]
    tokens: Int[Array, "B G C"]
    logps: Float[Array, "B G C"]
    truncated_logps: Float[Array, "B G C"] | None
    lengths: Int[Array, "B G"]
    done: Bool[Array, "B G"]  # latched: a row that has stopped stays stopped
    keys: Key[Array, "B G"]
    seen: Bool[Array, "B G V"] | None  # tokens to penalise
    prompts: tuple[PromptCache, ...]
    caches: tuple[KVCache, ...]  # of each group


def row_keys(seed: Key[Array, ""], step: int, row_ids: Int[Array, "B G"]) -> Key[Array, "B G"]:
    """One key for each row, from its own id alone: batch layout and device count do not matter."""
    at_step = jax.random.fold_in(seed, step)
    flat = jax.vmap(functools.partial(jax.random.fold_in, at_step))(row_ids.reshape(-1))
    return flat.reshape(row_ids.shape)


@functools.partial(jax.jit, static_argnames="plan")
def generate(
    model: Model,
    prompts: tuple[Prompt, ...],
    active: Bool[Array, "B G"],
    keys: Key[Array, "B G"],
    limits: Limits,
    plan: Plan,
) -> Completion:
    """Completions of every prompt, all groups along G. Rows that are not active stay empty and cost no steps."""
    state = start(model, prompts, active, keys, limits, plan)
    return finish(advance(model, state, limits, plan, limits.max_new_tokens))


@functools.partial(jax.jit, static_argnames="plan")
def start(
    model: Model,
    prompts: tuple[Prompt, ...],
    active: Bool[Array, "B G"],
    keys: Key[Array, "B G"],
    limits: Limits,
    plan: Plan,
) -> SamplingState:
    """Read the prompts, once each, and sample the first token of every row."""
    batch, rows = prompts[0].tokens.shape[0], sum(plan.groups)
    hidden, caches = zip(*(base.prefill(model, prompt) for prompt in prompts), strict=True)
    empty = functools.partial(attention.empty_cache, model.config.text, batch, slots=plan.capacity)
    spread = [jnp.repeat(h[:, None], g, axis=1) for h, g in zip(hidden, plan.groups, strict=True)]
    seen = _seen_in_prompts(prompts, plan, model.config.text.vocab) if plan.penalize else None
    slots = (batch, rows, plan.capacity)
    state = SamplingState(
        step=jnp.int32(0),
        tokens=jnp.full(slots, plan.pad_token, jnp.int32),
        logps=jnp.zeros(slots, jnp.float32),
        truncated_logps=jnp.zeros(slots, jnp.float32) if plan.truncated_logps else None,
        lengths=jnp.zeros((batch, rows), jnp.int32),
        done=~active,
        keys=keys,
        seen=seen,
        prompts=caches,
        caches=tuple(empty(rows=group, dtype=caches[0].keys[0].dtype) for group in plan.groups),
    )
    return _append(state, model, jnp.concatenate(spread, axis=1), limits, plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def advance(
    model: Model, state: SamplingState, limits: Limits, plan: Plan, until: Int[Array, ""]
) -> SamplingState:
    """Decode until `until` tokens are written, the length limit is reached or every row has stopped."""
    last = jnp.minimum(until, limits.max_new_tokens)

    def body(state):
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2, keepdims=False)
        hidden, caches = base.decode(model, state.prompts, plan.groups, state.caches, newest, state.step - 1)
        return _append(dataclasses.replace(state, caches=tuple(caches)), model, hidden, limits, plan)

    for slots in cache_sizes(plan.capacity):

        def unfinished(state, slots=slots):
            return (state.step < jnp.minimum(last, slots)) & ~state.done.all()

        whole = state.caches
        state = dataclasses.replace(state, caches=tuple(attention.first_slots(cache, slots) for cache in whole))
        with jax.named_scope("decode"):
            state = jax.lax.while_loop(unfinished, body, state)
        grown = [attention.with_first_slots(*both) for both in zip(whole, state.caches, strict=True)]
        state = dataclasses.replace(state, caches=tuple(grown))
    return state


def cache_sizes(capacity: int) -> list[int]:
    """How much of the cache is decoded with, in turn: a step reads all the slots it is given, written or not."""
    return [size for size in (capacity // 4, capacity // 2) if size >= _SHORTEST_CACHE] + [capacity]


def finish(state: SamplingState) -> Completion:
    mask = jnp.arange(state.tokens.shape[2]) < state.lengths[..., None]
    stopped = state.done & (state.lengths > 0)
    completion = Completion(state.tokens, mask, state.logps, stopped, state.truncated_logps)
    return jax.tree.map(lambda x: shard(x, "batch"), completion)


def split_groups(completion: Completion, groups: tuple[int, ...]) -> list[Completion]:
    bounds = itertools.accumulate(groups, initial=0)
    return [
        jax.tree.map(lambda x, first=first, last=last: x[:, first:last], completion)
        for first, last in itertools.pairwise(bounds)
    ]


def _append(state: SamplingState, model: Model, hidden: Float[Array, "B G D"], limits: Limits, plan: Plan):
    """Sample token number `step` of every row from the hidden states that predict it."""
    # Each device scores its share of the vocabulary, then scores are gathered: with only the second constraint
    # the compiler gathers the head instead.
    scores = shard(base.logits(model, hidden), "batch", None, "vocab")
    scores = shard(scores, "batch", None, None)
    choices = scores
    if state.seen is not None:
        choices = sampling_logits.penalize_repetition(scores, state.seen, limits.repetition_penalty)
    keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, state.step)))(state.keys)
    sampled = sampling_logits.sample(choices, keys, limits.temperature, limits.top_p, plan.top_k)
    token = jnp.where(state.done, plan.pad_token, sampled)
    logp = jnp.where(state.done, 0.0, sampling_logits.log_prob(scores, sampled))
    stops = (sampled[..., None] == jnp.array(plan.stop_tokens)).any(-1)
    seen = state.seen
    if seen is not None:
        batch, rows = jnp.indices(sampled.shape)
        seen = seen.at[batch, rows, sampled].set(True)
    truncated = state.truncated_logps
    if truncated is not None:
        of_choice = sampling_logits.truncated_log_prob(
            choices, sampled, limits.temperature, limits.top_p, plan.top_k
        )
        truncated = _put(truncated, jnp.where(state.done, 0.0, of_choice), state.step)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tokens=_put(state.tokens, token, state.step),
        logps=_put(state.logps, logp, state.step),
        truncated_logps=truncated,
        lengths=state.lengths + ~state.done,
        done=state.done | stops,
        seen=seen,
    )


def _put(slots: jax.Array, column: jax.Array, step: Int[Array, ""]) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(slots, column, step, axis=2)


def _seen_in_prompts(prompts: tuple[Prompt, ...], plan: Plan, vocab: int) -> Bool[Array, "B G V"]:
    def seen(prompt, rows):
        batch = jnp.arange(prompt.tokens.shape[0])[:, None]
        marks = jnp.zeros((prompt.tokens.shape[0], vocab), bool).at[batch, prompt.tokens].max(prompt.mask)
        return jnp.repeat(marks[:, None], rows, axis=1)

    return jnp.concatenate([seen(p, g) for p, g in zip(prompts, plan.groups, strict=True)], axis=1)
