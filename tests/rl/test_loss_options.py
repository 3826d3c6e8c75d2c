"""Dual clip and truncated importance sampling against plain torch, written token by token; and that off is off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vr1_jax.rl import policy_loss

SETTINGS = {"clip_low": 0.2, "clip_high": 0.28, "beta": 0.04}
B, G, C = 3, 4, 6
# Rounding of float64 over 72 tokens; a forgotten cap, clip or stop-gradient is above 1e-4 (tests below).
TOLERANCE = 1e-12


def example(dtype=np.float64):
    """Ratios beyond the dual clip, mismatches on both sides of the cap, unequal lengths."""
    random = np.random.default_rng(3)
    logps = random.normal(-2, 0.5, (B, G, C))
    old, ref, sampler = logps + random.normal(0, 0.9, (3, B, G, C))
    mask = np.arange(C) < random.integers(1, C + 1, (B, G))[..., None]
    return *(x.astype(dtype) for x in (logps, old, ref, random.normal(size=(B, G)))), mask, sampler.astype(dtype)


def oracle(logps, old, ref, advantages, mask, sampler, *, dual_clip=None, cap=None):
    """Mean over sequences of the mean over their tokens; `old` None is on policy."""
    leaf = torch.tensor(logps, requires_grad=True)
    sequences = []
    for b, g in np.ndindex(B, G):
        terms, advantage = [], float(advantages[b, g])
        for c in range(int(mask[b, g].sum())):
            logp = leaf[b, g, c]
            before = logp.item() if old is None else float(old[b, g, c])
            ratio = torch.exp(logp - before)
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            if dual_clip is not None and advantage < 0 and gain.item() < dual_clip * advantage:
                gain = torch.tensor(dual_clip * advantage, dtype=torch.float64)
            if cap is not None:
                gain = gain * min(np.exp(before - sampler[b, g, c]), cap)
            x = float(ref[b, g, c]) - logp
            terms.append(-gain + 0.04 * (torch.exp(x) - x - 1))
        sequences.append(torch.stack(terms).mean())
    loss = torch.stack(sequences).mean()
    loss.backward()
    return loss.item(), leaf.grad.numpy()


def ours(logps, *rest, **options):
    def loss(x):
        return policy_loss(x, *rest, **SETTINGS, **options)[0]

    with jax.enable_x64(logps.dtype == np.float64):
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(logps))
        return float(value), np.asarray(gradient)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize(("dual_clip", "cap"), [(None, None), (1.5, None), (None, 1.3), (1.5, 1.3)])
def test_loss_and_gradient_are_torchs(dual_clip, cap, on_policy):
    logps, old, ref, advantages, mask, sampler = example()
    old = None if on_policy else old
    expected = oracle(logps, old, ref, advantages, mask, sampler, dual_clip=dual_clip, cap=cap)
    options = {"dual_clip": dual_clip or 0.0, "sampler_cap": cap or 0.0, "sampler_logps": sampler}
    loss, gradient = ours(logps, old, ref, advantages, mask, **options)
    assert loss == pytest.approx(expected[0], abs=TOLERANCE)
    np.testing.assert_allclose(gradient, expected[1], atol=TOLERANCE)


@pytest.mark.parametrize(
    "change",
    [{"sampler_cap": 0.0}, {"sampler_cap": 1.4}, {"dual_clip": 0.0}, {"dual_clip": 1.6}, {"sampler": 0.1}],
)
def test_the_oracle_would_notice(change):
    logps, old, ref, advantages, mask, sampler = example()
    expected = oracle(logps, old, ref, advantages, mask, sampler, dual_clip=1.5, cap=1.3)
    options = {"dual_clip": 1.5, "sampler_cap": 1.3} | {k: v for k, v in change.items() if k != "sampler"}
    sampler = sampler + change.get("sampler", 0.0)
    loss, _ = ours(logps, old, ref, advantages, mask, sampler_logps=sampler, **options)
    assert abs(loss - expected[0]) > 1e-4


def test_on_policy_the_weight_has_no_gradient():
    """It is a number that multiplies: with the sampler at twice the trainer's chance everywhere, a half of all."""
    logps, _, _, advantages, mask, _ = example()
    plain = ours(logps, None, None, advantages, mask)
    halved = ours(logps, None, None, advantages, mask, sampler_logps=logps + np.log(2), sampler_cap=2.0)
    assert halved[0] == pytest.approx(plain[0] / 2, abs=TOLERANCE)
    np.testing.assert_allclose(halved[1], plain[1] / 2, atol=TOLERANCE)


def test_off_is_the_same_to_the_bit_and_reads_no_sampler():
    logps, old, ref, advantages, mask, sampler = example(np.float32)
    plain = ours(logps, old, ref, advantages, mask)
    off = {"dual_clip": 0.0, "sampler_cap": 0.0, "sampler_logps": sampler * np.float32(np.nan)}
    loss, gradient = ours(logps, old, ref, advantages, mask, **off)
    assert loss == plain[0]
    np.testing.assert_array_equal(gradient, plain[1])
    assert policy_loss(logps, old, ref, advantages, mask, **SETTINGS)[1].keys() == {
        "tokens", "clipped_low", "clipped_high", "kl", "ratio_mean", "ratio_min", "ratio_max",
        "logp_gap_mean", "logp_gap_max",
    }  # fmt: skip


def test_metrics_of_the_mismatch():
    logps, old, ref, advantages, mask, sampler = example()
    options = SETTINGS | {"sampler_logps": sampler, "sampler_cap": 1.3}
    _, metrics = policy_loss(logps, old, ref, advantages, mask, **options)
    weights = np.exp(old - sampler)[mask]
    assert float(metrics["sampler_weight_mean"]) == pytest.approx(weights.mean(), rel=1e-5)
    assert float(metrics["sampler_weight_max"]) == pytest.approx(weights.max(), rel=1e-5)
    assert float(metrics["sampler_weight_capped"]) == pytest.approx((weights > 1.3).mean(), rel=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_what_the_mask_hides_does_not_matter(garbage):
    logps, old, ref, advantages, mask, sampler = example(np.float32)
    options = {"sampler_cap": 1.3, "dual_clip": 1.5}
    clean = ours(logps, old, ref, advantages, mask, sampler_logps=sampler, **options)
    dirty = np.where(mask, sampler, np.float32(garbage))
    loss, gradient = ours(logps, old, ref, advantages, mask, sampler_logps=dirty, **options)
    assert loss == clean[0]
    np.testing.assert_array_equal(gradient, clean[1])
