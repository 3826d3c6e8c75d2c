"""From next-token logits to a token: temperature, top-k, top-p, greedy, and the log-probs that go with it.

Top-p needs no sort. A token is proposed from the whole distribution and kept if it lies in the nucleus, that
is if the tokens more likely than it hold less than top_p of the mass: one pass over the vocabulary. If not,
the nucleus lies among the more likely tokens, and the next proposal comes from those. Whatever the number of
rounds, a kept token has exactly its probability within the nucleus, and at top_p 0.95 one round nearly always
does. Tokens of equal probability are in or out together.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# The vocabulary is summed in blocks first, so that drawing a token is one pass and two short cumulative sums.
_BLOCK = 256


def log_prob(logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def penalize_repetition(
    logits: Float[Array, "*rows V"], seen: Bool[Array, "*rows V"], penalty: Float[Array, ""]
) -> Float[Array, "*rows V"]:
    """Make tokens of the prompt and of the answer so far less likely, as transformers does."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    logits: Float[Array, "*rows V"],
    keys: Key[Array, "*rows"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    top_k: int = 0,
) -> Int[Array, "*rows"]:
    """One token per row, each from its own key. Temperature 0 is greedy; top_k 0 keeps all tokens.

    A row of logits that are not finite numbers gets a token all the same: its log-prob shows what it is worth.
    """

    def draw():
        scaled = logits / temperature
        weights = jnp.exp(scaled - scaled.max(-1, keepdims=True))
        return _sample_nucleus(_keep_top_k(weights, top_k) if top_k else weights, keys, top_p)

    return jax.lax.cond(temperature > 0, draw, lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32))


def truncated_log_prob(
    logits: Float[Array, "*rows V"],
    tokens: Int[Array, "*rows"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    top_k: int = 0,
) -> Float[Array, "*rows"]:
    """Log-prob of drawn tokens under what they were drawn from. Sorts: for inspection, not for every step."""
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    chosen = jnp.take_along_axis(scaled, tokens[..., None], axis=-1)[..., 0]
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    if 0 < top_k < ordered.shape[-1]:
        ordered = jnp.where(ordered >= ordered[..., top_k - 1, None], ordered, -jnp.inf)
    kept = _in_nucleus(jax.nn.softmax(ordered, axis=-1), top_p)
    log_mass = jax.nn.logsumexp(ordered, axis=-1, where=kept)
    return jnp.where(temperature > 0, chosen - log_mass, 0.0)


def _in_nucleus(ordered, top_p):
    """Which of these probabilities, largest first, have less than top_p strictly above them."""
    above = jnp.cumsum(ordered, axis=-1) - ordered
    leads = jnp.concatenate([jnp.ones_like(ordered[..., :1], bool), ordered[..., 1:] < ordered[..., :-1]], axis=-1)
    above_ties = jax.lax.cummax(jnp.where(leads, above, 0.0), axis=ordered.ndim - 1)
    return (above_ties < top_p) | (top_p >= 1)


def _keep_top_k(weights, k):
    """Zero all but the k largest and what equals the least of them.

    That one is found bit by bit, in 31 passes: on a CPU lax.top_k of 152k numbers takes thirty times longer.
    """
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)  # in the order of the weights: none is negative

    def set_bit(i, least):
        higher = least | (1 << (30 - i))
        return jnp.where((bits >= higher[..., None]).sum(-1) >= k, higher, least)

    least = jax.lax.fori_loop(0, 31, set_bit, jnp.zeros(weights.shape[:-1], jnp.int32))
    return jnp.where(bits >= least[..., None], weights, 0.0)


def _sample_nucleus(weights, keys, top_p):
    total = weights.sum(-1)

    def propose(state):
        round_, tokens, accepted, floor = state
        candidates = jnp.where(weights > floor[..., None], weights, 0.0)
        proposed = _draw(candidates, _uniform(keys, round_))
        weight = jnp.take_along_axis(weights, proposed[..., None], axis=-1)
        mass_above = jnp.where(weights > weight, weights, 0.0).sum(-1)
        # What nothing lies above is inside, also among nan. At top_p 1 sums must not round the least likely out.
        inside = (mass_above < top_p * total) | (mass_above <= 0) | (top_p >= 1)
        tokens = jnp.where(accepted, tokens, proposed)
        floor = jnp.where(accepted | inside, floor, weight[..., 0])
        return round_ + 1, tokens, accepted | inside, floor

    # The most likely token always lies inside, so every round either ends a row or raises its floor.
    start = (0, jnp.zeros(total.shape, jnp.int32), jnp.zeros(total.shape, bool), jnp.zeros_like(total))
    return jax.lax.while_loop(lambda state: ~state[2].all(), propose, start)[1]


def _draw(weights, uniform):
    """The token where the running sum of weights passes uniform * total."""
    size = weights.shape[-1]
    padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -size % _BLOCK)])
    blocks = padded.reshape(*weights.shape[:-1], -1, _BLOCK)
    sums = blocks.sum(-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform * ends[..., -1]
    block = _first_above(sums, target)
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    before = jnp.take_along_axis(ends - sums, block[..., None], axis=-1)[..., 0]
    return block * _BLOCK + _first_above(inside, target - before)


def _first_above(weights, target):
    """Where the running sum exceeds the target; the last place with any weight if rounding lets none.

    Never a place without weight: summed in parallel, a running sum may rise by rounding alone.
    """
    has_weight = weights > 0
    above = has_weight & (jnp.cumsum(weights, axis=-1) > target[..., None])
    last = jnp.max(jnp.where(has_weight, jnp.arange(weights.shape[-1]), 0), axis=-1)
    return jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last).astype(jnp.int32)


def _uniform(keys, round_):
    flat = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, round_)))(keys.reshape(-1))
    return flat.reshape(keys.shape)
