"""The policy loss of GRPO and its relatives, as one pure function of log-probabilities.

relative           call
-----------------  ---------------------------------------------------------------------------
GRPO, T-GRPO       the defaults
clip-higher        clip_high > clip_low
DAPO               aggregation="token"
Dr. GRPO           aggregation="constant", with advantages that are not divided by the std
GSPO               ratio="sequence", clip_low and clip_high around 3e-4
dual-clip PPO      dual_clip=3
truncated IS       sampler_logps, sampler_cap=2
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

Aggregation = Literal["sequence", "token", "constant"]
Ratio = Literal["token", "sequence"]

_LARGEST_KL = 10.0
# Far beyond this log-ratio exp overflows; an overflow that the clip discards still makes a gradient of
# 0 * inf = nan.
_LARGEST_LOG_RATIO = 20.0


def policy_loss(
    logps: Float[ArrayLike, "B G C"],
    old_logps: Float[ArrayLike, "B G C"] | None,
    ref_logps: Float[ArrayLike, "B G C"] | None,
    advantages: Shaped[ArrayLike, "B G"],
    mask: Shaped[ArrayLike, "B G C"],
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    beta: ArrayLike,
    aggregation: Aggregation = "sequence",
    ratio: Ratio = "token",
    dual_clip: float = 0.0,
    sampler_logps: Float[ArrayLike, "B G C"] | None = None,
    sampler_cap: float = 0.0,
    denominator: ArrayLike | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """-(min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - beta * k3), averaged; and its metrics.

    `old_logps` None means on policy: r is 1 and has the policy's gradient. `ref_logps` None leaves out the k3
    penalty. Positions outside the mask may hold anything, -inf and nan included.

    `ratio` "sequence" replaces each token's r by its sequence's geometric mean. `aggregation` weighs tokens:

        sequence   mean over sequences of the mean over their tokens; a sequence without tokens counts as 0
        token      mean over all tokens
        constant   sum over tokens, over B * G * C

    `dual_clip` above 1 also bounds what an answer with A < 0 can lose, at dual_clip * A; 0 leaves it out.
    `sampler_cap` above 0 weighs each token's gain, not its k3, by min(exp(old - sampler), sampler_cap): the
    sampler computes with other kernels or precision, and drew from a policy that differs by so much.

    For microbatches pass the whole batch's `denominator` (see `loss_denominator`): their losses then add up
    to the whole batch's. Metrics are means over this call's tokens, or extremes: weigh means by `tokens`.
    """
    mask = jnp.asarray(mask, bool)
    logps = _masked(logps, mask)
    old_logps = lax.stop_gradient(logps if old_logps is None else _masked(old_logps, mask))
    advantages = jnp.asarray(advantages, logps.dtype)[..., None]

    log_ratios = _log_ratios(logps - old_logps, mask, ratio)
    ratios = _exp(log_ratios)
    clipped = jnp.clip(ratios, 1 - clip_low, 1 + clip_high)
    gain = jnp.minimum(ratios * advantages, clipped * advantages)
    if dual_clip:
        gain = jnp.where(advantages < 0, jnp.maximum(gain, dual_clip * advantages), gain)
    metrics = _metrics(ratios, logps - old_logps, advantages, mask, clip_low, clip_high)
    if sampler_cap:
        mismatch = _exp(old_logps - lax.stop_gradient(_masked(sampler_logps, mask)))
        gain = gain * jnp.minimum(mismatch, sampler_cap)
        metrics |= _mismatch_metrics(mismatch, mask, sampler_cap)
    token_loss, kl = -gain, jnp.zeros_like(logps)
    if ref_logps is not None:
        kl = k3(lax.stop_gradient(_masked(ref_logps, mask)) - logps)
        token_loss = token_loss + beta * kl

    if denominator is None:
        denominator = loss_denominator(mask, aggregation)
    loss = jnp.sum(token_loss * _token_weights(mask, aggregation, token_loss.dtype)) / denominator
    return loss, jax.tree.map(lax.stop_gradient, metrics | {"kl": _mean(kl, mask)})


def loss_denominator(mask: Shaped[ArrayLike, "B G C"], aggregation: Aggregation) -> Float[Array, ""]:
    """What the loss of this batch is divided by: its sequences, its tokens, or its slots.

    For "constant" C is the padded length of the batch. Where that varies between batches, use the number of
    sequences times the generation limit instead.
    """
    mask = jnp.asarray(mask, bool)
    if aggregation == "token":
        return jnp.maximum(jnp.sum(mask, dtype=float), 1.0)
    if aggregation == "sequence":
        return jnp.asarray(mask.shape[0] * mask.shape[1], float)
    if aggregation == "constant":
        return jnp.asarray(mask.size, float)
    raise ValueError(f"unknown aggregation {aggregation!r}; use one of: sequence, token, constant")


def k3(log_ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(x) - x - 1 for x clipped to [-10, 10]: an unbiased, never negative estimate of the KL divergence.

    x is log(reference / policy) of a token that the policy sampled.
    """
    x = jnp.clip(log_ratio, -_LARGEST_KL, _LARGEST_KL)
    return jnp.expm1(x) - x  # keeps the digits near 0 that exp(x) - 1 drops


def _masked(logps: ArrayLike, mask: Array) -> Array:
    """Zero outside the mask, before any arithmetic: what is selected away there has no gradient either."""
    logps = jnp.asarray(logps)
    return jnp.where(mask, logps.astype(jnp.promote_types(logps.dtype, jnp.float32)), 0.0)


def _log_ratios(log_ratios: Array, mask: Array, ratio: Ratio) -> Array:
    if ratio == "token":
        return log_ratios
    if ratio == "sequence":
        mean = jnp.sum(log_ratios, -1, keepdims=True) / _lengths(mask)
        return jnp.broadcast_to(mean, log_ratios.shape)
    raise ValueError(f"unknown ratio {ratio!r}; use one of: token, sequence")


def _lengths(mask: Array) -> Array:
    """Tokens of each sequence, at least 1, so that a sequence without any divides by 1."""
    return jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)


def _token_weights(mask: Array, aggregation: Aggregation, dtype) -> Array:
    weights = mask.astype(dtype)
    return weights / _lengths(mask) if aggregation == "sequence" else weights


def _exp(log_ratios: Array) -> Array:
    return jnp.exp(jnp.clip(log_ratios, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))


def _mean(values: Array, mask: Array) -> Array:
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask, dtype=float), 1)


def _metrics(ratios, gap, advantages, mask, clip_low, clip_high) -> dict[str, Array]:
    return {
        "tokens": jnp.sum(mask, dtype=ratios.dtype),
        "clipped_low": _mean((ratios < 1 - clip_low) & (advantages < 0), mask),
        "clipped_high": _mean((ratios > 1 + clip_high) & (advantages > 0), mask),
        "ratio_mean": _mean(ratios, mask),
        "ratio_min": jnp.min(ratios, where=mask, initial=jnp.inf),
        "ratio_max": jnp.max(ratios, where=mask, initial=0.0),
        "logp_gap_mean": _mean(jnp.abs(gap), mask),
        "logp_gap_max": jnp.max(jnp.abs(gap), where=mask, initial=0.0),
    }


def _mismatch_metrics(mismatch: Array, mask: Array, cap: float) -> dict[str, Array]:
    """Of the weights between sampler and trainer, before they are capped."""
    return {
        "sampler_weight_mean": _mean(mismatch, mask),
        "sampler_weight_max": jnp.max(mismatch, where=mask, initial=0.0),
        "sampler_weight_capped": _mean(mismatch > cap, mask),
    }
