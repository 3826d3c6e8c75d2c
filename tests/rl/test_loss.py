"""The policy loss against plain torch: values and gradients, in both precisions, for every relative of GRPO."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.rl import policy_loss
from vr1_jax.rl.loss import k3, loss_denominator

SETTINGS = {"clip_low": 0.2, "clip_high": 0.28, "beta": 0.04}
RELATIVES = [
    (aggregation, ratio) for aggregation in ("sequence", "token", "constant") for ratio in ("token", "sequence")
]
B, G, C = 3, 4, 7


def example(seed=0, dtype=np.float64, spread=0.3):
    """Log-probs whose ratios fall on both sides of the clip, unequal lengths, and one sequence without tokens."""
    random = np.random.default_rng(seed)
    logps = random.normal(-1.5, 0.7, (B, G, C))
    old, ref = logps + random.normal(0, spread, (2, B, G, C))
    lengths = random.integers(1, C + 1, (B, G))
    lengths[1, 2] = 0
    mask = np.arange(C) < lengths[..., None]
    arrays = (logps, old, ref, random.normal(size=(B, G)))
    return *(x.astype(dtype) for x in arrays), mask


def oracle(logps, old, ref, advantages, mask, *, clip_low, clip_high, beta, aggregation, ratio):
    """Sequence by sequence, token by token, no masks: what is not a token is never looked at."""
    logps = torch.tensor(logps, requires_grad=True)
    old, ref, advantages = (None if x is None else torch.tensor(x) for x in (old, ref, advantages))
    terms = []
    for b, g in np.ndindex(*mask.shape[:2]):
        here = torch.tensor(mask[b, g])
        if not here.any():
            continue
        mine = logps[b, g][here]
        log_ratio = mine - (mine.detach() if old is None else old[b, g][here])
        if ratio == "sequence":
            log_ratio = log_ratio.mean() * torch.ones_like(mine)
        r, advantage = torch.exp(log_ratio), advantages[b, g]
        gain = torch.min(r * advantage, torch.clamp(r, 1 - clip_low, 1 + clip_high) * advantage)
        if ref is not None:
            x = torch.clamp(ref[b, g][here] - mine, min=-10, max=10)
            gain = gain - beta * (torch.exp(x) - x - 1)
        terms.append(-gain)
    sequences, slots = mask.shape[0] * mask.shape[1], mask.size
    loss = {
        "sequence": lambda: sum(term.mean() for term in terms) / sequences,
        "token": lambda: torch.cat(terms).mean(),
        "constant": lambda: sum(term.sum() for term in terms) / slots,
    }[aggregation]()
    (gradient,) = torch.autograd.grad(loss, logps)
    return loss.item(), gradient.numpy()


def loss_and_gradient(logps, *rest, **options):
    value, gradient = jax.value_and_grad(lambda x: policy_loss(x, *rest, **options)[0])(jnp.asarray(logps))
    return float(value), np.asarray(gradient)


@pytest.mark.parametrize(("aggregation", "ratio"), RELATIVES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("on_policy", [False, True])
def test_loss_and_gradient_are_the_oracles(aggregation, ratio, dtype, tolerance, on_policy):
    logps, old, ref, advantages, mask = example(dtype=dtype)
    old = None if on_policy else old
    options = SETTINGS | {"aggregation": aggregation, "ratio": ratio}
    expected_loss, expected_gradient = oracle(logps, old, ref, advantages, mask, **options)
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        loss, gradient = loss_and_gradient(logps, old, ref, advantages, mask, **options)
    assert loss == pytest.approx(expected_loss, abs=tolerance)
    np.testing.assert_allclose(gradient, expected_gradient, atol=tolerance)


@pytest.mark.parametrize("change", ["advantages", "mask", "old", "ref", "clip_high", "clip_low", "beta"])
def test_the_oracle_would_notice(change):
    """Each input matters: the comparison above fails when one of them is off."""
    logps, old, ref, advantages, mask = example(spread=0.5)
    options = SETTINGS | {"aggregation": "sequence", "ratio": "token"}
    expected_loss, _ = oracle(logps, old, ref, advantages, mask, **options)
    inputs = {"old": old, "ref": ref, "advantages": advantages, "mask": mask} | SETTINGS
    inputs[change] = ~mask if change == "mask" else inputs[change] * 1.1
    old, ref, advantages, mask, *_ = inputs.values()
    loss, _ = policy_loss(logps, old, ref, advantages, mask, **{name: inputs[name] for name in SETTINGS})
    assert abs(float(loss) - expected_loss) > 1e-5


def test_on_policy_is_upstreams_loss():
    """Upstream has no clip, only exp(logp - stop_gradient(logp)) A: at a ratio of 1 a clip cannot act."""
    logps, _, ref, advantages, mask = example()
    mask[1, 2, 0] = True  # upstream divides by every sequence's length
    tensor, weights = torch.tensor(logps, requires_grad=True), torch.tensor(mask).int()
    x = torch.clamp(torch.tensor(ref) - tensor, -10, 10)
    token_loss = -(
        torch.exp(tensor - tensor.detach()) * torch.tensor(advantages)[..., None] - 0.04 * (x.exp() - x - 1)
    )
    expected = ((token_loss * weights).sum(-1) / weights.sum(-1)).mean()
    expected.backward()
    with jax.enable_x64(True):
        loss, gradient = loss_and_gradient(
            logps, None, ref, advantages, mask, clip_low=0.2, clip_high=0.2, beta=0.04
        )
    assert loss == pytest.approx(expected.item(), abs=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-12)


def test_on_policy_equals_old_logps_of_the_same_value():
    logps, _, ref, advantages, mask = example(dtype=np.float32)
    none = loss_and_gradient(logps, None, ref, advantages, mask, **SETTINGS)
    same = loss_and_gradient(logps, logps, ref, advantages, mask, **SETTINGS)
    assert none[0] == same[0]
    np.testing.assert_array_equal(none[1], same[1])


@pytest.mark.parametrize("garbage", [-np.inf, np.inf, np.nan, -1e30])
@pytest.mark.parametrize(("aggregation", "ratio"), RELATIVES)
def test_what_the_mask_hides_does_not_matter(garbage, aggregation, ratio):
    logps, old, ref, advantages, mask = example(dtype=np.float32)
    options = SETTINGS | {"aggregation": aggregation, "ratio": ratio}
    clean_loss, clean_gradient = loss_and_gradient(logps, old, ref, advantages, mask, **options)
    logps, old, ref = (np.where(mask, x, np.float32(garbage)) for x in (logps, old, ref))
    loss, gradient = loss_and_gradient(logps, old, ref, advantages, mask, **options)
    assert loss == clean_loss
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert (gradient[~mask] == 0).all()
    assert np.isfinite(gradient).all()
    _, metrics = policy_loss(logps, old, ref, advantages, mask, **options)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_far_off_policy_stays_finite(sign, ratio):
    """A log-ratio of 200 overflows exp in float32."""
    logps, _, ref, advantages, mask = example(dtype=np.float32)
    advantages[0, 0] = 0.0
    loss, gradient = loss_and_gradient(logps, logps - sign * 200, ref, advantages, mask, ratio=ratio, **SETTINGS)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_no_tokens_at_all_is_a_loss_of_zero(aggregation):
    logps, old, ref, advantages, mask = example(dtype=np.float32)
    loss, gradient = loss_and_gradient(
        logps, old, ref, advantages, mask & False, aggregation=aggregation, **SETTINGS
    )
    assert loss == 0.0
    assert (gradient == 0).all()


@pytest.mark.parametrize(("aggregation", "ratio"), RELATIVES)
def test_microbatches_add_up_to_the_whole(aggregation, ratio):
    logps, old, ref, advantages, mask = example(dtype=np.float32)
    options = SETTINGS | {"aggregation": aggregation, "ratio": ratio}
    whole_loss, whole_gradient = loss_and_gradient(logps, old, ref, advantages, mask, **options)
    options |= {"denominator": loss_denominator(mask, aggregation)}
    parts = [
        loss_and_gradient(*(x[b : b + 1] for x in (logps, old, ref, advantages, mask)), **options)
        for b in range(B)
    ]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole_loss, abs=1e-6)
    np.testing.assert_allclose(np.concatenate([gradient for _, gradient in parts]), whole_gradient, atol=1e-7)


def test_the_step_is_the_same_for_the_mean_over_a_padded_batch():
    """A row without tokens counts in the default mean; a denominator of real sequences leaves it out."""
    logps, old, ref, advantages, mask = example(dtype=np.float32)
    inputs = [x[1:2] for x in (logps, old, ref, advantages, mask)]
    padded, _ = policy_loss(*inputs, **SETTINGS)
    real, _ = policy_loss(*inputs, denominator=G - 1, **SETTINGS)
    kept = np.array([0, 1, 3])
    alone, _ = policy_loss(*(x[:, kept] for x in inputs), **SETTINGS)
    assert float(real) == pytest.approx(float(alone), abs=1e-6)
    assert float(padded) == pytest.approx(float(alone) * 3 / 4, abs=1e-6)


def test_without_reference_there_is_no_penalty():
    logps, old, ref, advantages, mask = example(dtype=np.float32)
    without = loss_and_gradient(logps, old, None, advantages, mask, **SETTINGS)
    weightless = loss_and_gradient(logps, old, ref, advantages, mask, clip_low=0.2, clip_high=0.28, beta=0)
    assert without[0] == weightless[0]
    np.testing.assert_array_equal(without[1], weightless[1])


def test_clip_stops_the_gradient_on_the_profitable_side_only():
    """Rows: ratio 2 with A = 1 (clipped), with A = -1 (not), ratio 1/2 with A = 1 (not), with A = -1 (clipped)."""
    logps = np.log(np.array([[[2.0], [2.0], [0.5], [0.5]]], np.float32))
    advantages, mask = np.array([[1.0, -1, 1, -1]], np.float32), np.ones((1, 4, 1), bool)
    arguments = (np.zeros_like(logps), None, advantages, mask)
    _, gradient = loss_and_gradient(logps, *arguments, **SETTINGS)
    np.testing.assert_allclose(gradient[0, :, 0], [0, 2 / 4, -0.5 / 4, 0], atol=1e-6)
    _, metrics = policy_loss(logps, *arguments, **SETTINGS)
    assert float(metrics["clipped_low"]) == float(metrics["clipped_high"]) == 0.25


def test_metrics_count_tokens_only():
    logps, old, ref, advantages, mask = example()
    _, metrics = policy_loss(logps, old, ref, advantages, mask, **SETTINGS)
    ratios, x = np.exp(logps - old)[mask], (ref - logps)[mask]
    expected = {
        "tokens": mask.sum(),
        "kl": np.mean(np.exp(x) - x - 1),
        "ratio_mean": ratios.mean(),
        "ratio_min": ratios.min(),
        "ratio_max": ratios.max(),
        "logp_gap_mean": np.abs(logps - old)[mask].mean(),
        "logp_gap_max": np.abs(logps - old)[mask].max(),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5), name


@settings(deadline=None, max_examples=100)
@given(st.floats(-100, 100))
def test_k3_is_never_negative_and_bounded(x):
    value = float(k3(jnp.float32(x)))
    assert 0 <= value <= np.exp(10)


@pytest.mark.parametrize("x", [1e-3, -1e-3, 1e-2, 0.5, 5.0, -5.0])
def test_k3_keeps_its_digits_near_zero(x):
    """exp(x) - x - 1 as written is 5% off at 1e-3 in float32."""
    assert float(k3(jnp.float32(x))) == pytest.approx(np.expm1(np.float64(x)) - x, rel=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.permutations(range(G)))
def test_the_order_of_a_group_does_not_matter(seed, order):
    logps, old, ref, advantages, mask = example(seed, np.float32)
    loss, _ = policy_loss(logps, old, ref, advantages, mask, **SETTINGS)
    order = np.array(order)
    permuted, _ = policy_loss(*(x[:, order] for x in (logps, old, ref, advantages, mask)), **SETTINGS)
    assert float(permuted) == pytest.approx(float(loss), abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5]))
def test_padding_changes_no_loss(seed, padding):
    inputs = example(seed, np.float32)
    wide = [np.pad(x, ((0, 0), (0, 0), (0, padding))) if x.ndim == 3 else x for x in inputs]
    for aggregation in ("sequence", "token"):
        loss, _ = policy_loss(*inputs, aggregation=aggregation, **SETTINGS)
        padded, _ = policy_loss(*wide, aggregation=aggregation, **SETTINGS)
        assert float(padded) == pytest.approx(float(loss), abs=1e-6)


def test_masks_of_numbers_and_bfloat16_log_probs_are_understood():
    logps, old, ref, advantages, mask = example(dtype=np.float32)
    expected, _ = policy_loss(logps, old, ref, advantages, mask, **SETTINGS)
    for kind in (np.int32, np.float32):
        loss, _ = policy_loss(logps, old, ref, advantages, mask.astype(kind), **SETTINGS)
        assert float(loss) == float(expected)
    loss, _ = policy_loss(
        jnp.asarray(logps, jnp.bfloat16), old, ref, advantages.astype(np.float64), mask, **SETTINGS
    )
    assert loss.dtype == jnp.float32


def test_it_compiles_once_for_all_settings():
    traces = []

    @jax.jit
    def compiled(*arrays, **options):
        traces.append(options)
        return policy_loss(*arrays, **options)[0]

    arrays = example(dtype=np.float32)
    for beta in (0.0, 0.04):
        loss = compiled(*arrays, clip_low=0.2, clip_high=0.28, beta=beta)
        expected, _ = policy_loss(*arrays, clip_low=0.2, clip_high=0.28, beta=beta)
        assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("option", ["aggregation", "ratio"])
def test_unknown_options_are_refused(option):
    arrays = example(dtype=np.float32)
    with pytest.raises(Exception, match="bogus"):
        policy_loss(*arrays, **SETTINGS, **{option: "bogus"})
