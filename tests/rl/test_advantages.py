"""Bonuses and advantages on cases worked out by hand, against torch, and by their properties."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vr1_jax.errors import UsageError
from vr1_jax.rl import group_advantages, length_bonus, temporal_bonus
from vr1_jax.rl.advantages import GRPOConfig, combine, overlong_penalty, temporal_signal

ASARRAY = [np.asarray, jnp.asarray, lambda values: np.asarray(values).tolist()]


def tables(low=-3.0, high=3.0, min_side=2):
    shapes = array_shapes(min_dims=2, max_dims=2, min_side=min_side, max_side=8)
    return shapes.flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.floats(low, high).map(lambda x: round(x, 3)))
    )


# --- temporal bonus -------------------------------------------------------------------------------

UPSTREAM = {"mu": 0.8, "threshold": 0.1, "p": "mean"}


@pytest.mark.parametrize(
    ("ordered", "shuffled", "settings", "expected"),
    [
        # the ordered group is better, equal, worse
        ([1, 1, 0, 0], [1, 0], {}, [0.3, 0.3, 0, 0]),
        ([1, 0, 0, 0], [0, 0], {}, [0.3, 0, 0, 0]),
        ([1, 0, 0, 0], [1, 0], {}, [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0], {}, [0, 0, 0, 0]),
        ([1, 1, 1, 1], [1, 1], {}, [0.3, 0.3, 0.3, 0.3]),
        # mu: 0.75 is below 1 but not below 0.8 * 0.9375
        ([1, 1, 1, 0], [1, 1], {}, [0, 0, 0, 0]),
        ([1, 1, 1, 0], [1, 0.875], UPSTREAM, [0.3, 0.3, 0.3, 0]),
        ([1, 1, 1, 0], [1, 1], UPSTREAM, [0, 0, 0, 0]),
        # threshold: strictly above
        ([0.5, 0.6, 0.2, 0.1], [0, 0], {}, [0, 0.3, 0, 0]),
        ([0.5, 0.6, 0.2, 0.1], [0, 0], UPSTREAM, [0.3, 0.3, 0.3, 0]),
        # share and mean disagree: shares 1/2 and 1, means 0.5 and 0.6
        ([1, 1, 0, 0], [0.6, 0.6], {"p": "share"}, [0, 0, 0, 0]),
        ([1, 1, 0, 0], [0.6, 0.6], {"p": "mean", "mu": 0.8}, [0.3, 0.3, 0, 0]),
        ([1, 1, 0, 0], [0.6, 0.6], {"p": "mean"}, [0, 0, 0, 0]),
        ([1, 0, 0, 0], [0, 0], {"alpha": 1}, [1, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("asarray", ASARRAY)
def test_temporal_bonus_by_hand(ordered, shuffled, settings, expected, asarray):
    bonus = temporal_bonus(asarray([ordered]), asarray([shuffled]), is_video=asarray([True]), **settings)
    np.testing.assert_allclose(np.asarray(bonus), [expected])


def test_images_get_no_temporal_bonus_whatever_their_shuffled_rows_hold():
    ordered, shuffled = [[1, 0], [1, 0]], [[0.0], [np.nan]]
    np.testing.assert_allclose(temporal_bonus(ordered, shuffled, is_video=[True, False]), [[0.3, 0], [0, 0]])


def test_without_shuffled_rows_there_is_no_temporal_bonus():
    np.testing.assert_array_equal(temporal_bonus([[1, 0]], np.zeros((1, 0)), is_video=[True]), [[0, 0]])


@pytest.mark.parametrize("accuracy", [0.1, 0.7, 1 / 3])
def test_equal_means_count_as_equal(accuracy):
    """0.7 averaged over 6 and over 3 differs in the last bit."""
    bonus = temporal_bonus([[accuracy] * 6], [[accuracy] * 3], threshold=0.05, p="mean", is_video=[True])
    np.testing.assert_allclose(bonus, [[0.3] * 6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": "median"}, "share, mean"),
        ({"shuffled": [[1]]}, "2 ordered groups but 1"),
        ({"ordered": [1, 0]}, "ordered"),
    ],
)
def test_temporal_bonus_refuses_what_makes_no_sense(change, message):
    arguments = {"ordered": [[1, 0], [1, 0]], "shuffled": [[1], [1]], "is_video": [True, True]} | change
    with pytest.raises(UsageError, match=message):
        temporal_bonus(**arguments)


# --- length bonus ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "lengths", "expected"),
    [
        ([1, 1, 0, 0], [319, 320, 400, 400], [0, 0.2, 0, 0]),
        ([1, 1, 0, 0], [512, 513, 400, 400], [0.2, 0, 0, 0]),
        ([1, 0, 0, 0], [400, 400, 400, 400], [0, 0, 0, 0]),  # one correct answer is not enough
        ([1, 1, 1, 1], [400, 400, 400, 400], [0.2, 0.2, 0.2, 0.2]),
        ([0, 0, 0, 0], [400, 400, 400, 400], [0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("asarray", ASARRAY)
@pytest.mark.parametrize("dtype", [bool, float])
def test_length_bonus_by_hand(correct, lengths, expected, asarray, dtype):
    bonus = length_bonus(asarray(np.asarray([correct], dtype)), asarray([lengths]))
    np.testing.assert_allclose(np.asarray(bonus), [expected])


def test_length_bonus_is_counted_per_group():
    bonus = length_bonus([[True, False], [True, True]], [[10, 10], [10, 99]], low=5, high=50, bonus=1)
    np.testing.assert_array_equal(bonus, [[0, 0], [1, 0]])


def test_length_bonus_refuses_tables_that_do_not_match():
    with pytest.raises(UsageError, match="lengths"):
        length_bonus([[True, False]], [[1], [2]])


# --- normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("asarray", ASARRAY)
def test_advantages_by_hand(asarray):
    """Rewards 2, 1, 0, 1: mean 1, unbiased std sqrt(2/3)."""
    expected = np.array([[1, 0, -1, 0]]) / (np.sqrt(2 / 3) + 1e-4)
    np.testing.assert_allclose(np.asarray(group_advantages(asarray([[2, 1, 0, 1]]))), expected, rtol=1e-6)
    plain = group_advantages(asarray([[2, 1, 0, 1]]), normalize_std=False)
    np.testing.assert_allclose(np.asarray(plain), [[1, 0, -1, 0]])


@settings(deadline=None, max_examples=100)
@given(tables())
def test_advantages_are_torchs(rewards):
    tensor = torch.tensor(rewards)
    expected = (tensor - tensor.mean(1, keepdim=True)) / (tensor.std(1, keepdim=True) + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards), expected.numpy(), atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(tables(min_side=1), st.booleans())
def test_advantages_of_a_group_sum_to_zero(rewards, normalize_std):
    advantages = group_advantages(rewards, normalize_std=normalize_std)
    assert np.isfinite(advantages).all()
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(tables(), st.floats(-10, 10), st.booleans())
def test_a_shift_of_all_rewards_changes_nothing(rewards, shift, normalize_std):
    shifted = group_advantages(rewards + shift, normalize_std=normalize_std)
    np.testing.assert_allclose(shifted, group_advantages(rewards, normalize_std=normalize_std), atol=1e-8)


@settings(deadline=None, max_examples=100)
@given(tables(), st.floats(0.5, 10))
def test_scale_divides_out_with_the_std_and_stays_without(rewards, scale):
    rewards = rewards + np.arange(rewards.shape[1])  # away from std 0, where the 1e-4 rules
    if (rewards.std(1) < 0.1).any():
        return
    np.testing.assert_allclose(group_advantages(rewards * scale), group_advantages(rewards), rtol=5e-3, atol=1e-9)
    plain, scaled = (group_advantages(r, normalize_std=False) for r in (rewards, rewards * scale))
    np.testing.assert_allclose(scaled, scale * plain, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3), st.integers(1, 9), st.booleans())
def test_equal_rewards_give_exactly_zero(reward, size, normalize_std):
    advantages = group_advantages([[reward] * size], normalize_std=normalize_std)
    np.testing.assert_array_equal(advantages, np.zeros((1, size)))


def test_groups_do_not_mix():
    rewards = np.array([[1, 0, 0, 0], [5, 5, 6, 7.0]])
    together = group_advantages(rewards)
    np.testing.assert_array_equal(together, np.concatenate([group_advantages(row[None]) for row in rewards]))


# --- everything together --------------------------------------------------------------------------


def upstream_group(accuracy, form, shuffled, lengths, is_video):
    """One group in torch, as upstream orders it: temporal bonus, sum, length bonus, normalisation."""
    accuracy, form = torch.tensor(accuracy, dtype=torch.float64), torch.tensor(form, dtype=torch.float64)
    rewards = accuracy + form
    good = accuracy > 0.1
    if is_video and accuracy.mean() >= 0.8 * torch.tensor(shuffled, dtype=torch.float64).mean():
        rewards = rewards + 0.3 * good
    if good.sum() > 1:
        rewards = rewards + torch.tensor(
            [0.2 if g and 320 <= n <= 512 else 0.0 for g, n in zip(good, lengths, strict=True)]
        )
    return rewards, (rewards - rewards.mean()) / (rewards.std() + 1e-4)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_the_upstream_preset_is_upstreams_arithmetic(seed):
    random = np.random.default_rng(seed)
    accuracy = random.choice([0, 0.05, 0.1, 0.45, 0.9, 1], (5, 8))
    shuffled = random.choice([0, 0.05, 0.45, 1], (5, 4))
    form = random.integers(0, 2, (5, 8)).astype(float)
    lengths, is_video = random.integers(200, 600, (5, 8)), random.integers(0, 2, 5).astype(bool)
    signal = combine(GRPOConfig.upstream(), accuracy, form, lengths, shuffled=shuffled, is_video=is_video)
    for b in range(5):
        if abs(accuracy[b].mean() - 0.8 * shuffled[b].mean()) < 1e-9:
            continue  # a tie: the last bit decides there, ours allows for rounding
        rewards, advantages = upstream_group(accuracy[b], form[b], shuffled[b], lengths[b], is_video[b])
        np.testing.assert_allclose(signal.rewards[b], rewards.numpy(), atol=1e-6)
        np.testing.assert_allclose(signal.advantages[b], advantages.numpy(), atol=1e-6)


def batch(**changes):
    tables = {
        "accuracy": np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0.0]]),
        "other": np.ones((3, 4)),
        "lengths": np.full((3, 4), 100),
        "shuffled": np.zeros((3, 2)),
        "is_video": np.array([True, True, True]),
    }
    return tables | changes


def test_the_std_nearly_cancels_a_bonus_that_every_correct_answer_shares():
    first = batch(accuracy=[[1, 1, 0, 0]], other=np.zeros((1, 4)), lengths=np.zeros((1, 4)))
    first |= {"shuffled": np.zeros((1, 2)), "is_video": [True]}
    signals = {
        name: combine(config, **first).metrics["temporal_signal"]
        for name, config in {
            "cancelled": GRPOConfig(),
            "advantage": GRPOConfig(placement="advantage"),
            "no std": GRPOConfig(normalize_std=False),
        }.items()
    }
    assert 0 < signals["cancelled"] < 1e-4
    assert signals["no std"] == pytest.approx(0.3 / 1.3)  # change over the larger side
    assert signals["advantage"] > 0.1


def test_format_keeps_some_of_the_bonus_alive():
    """With a reward that wrong answers earn too, the bonus is no longer a mere factor."""
    tables = batch(other=np.array([[1, 0, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0.0]]))
    assert combine(GRPOConfig(), **tables).metrics["temporal_signal"] > 0.01


def test_placement():
    tables = batch()
    plain = combine(GRPOConfig(alpha=0.0), **tables)
    reward, advantage = (combine(GRPOConfig(placement=place), **tables) for place in ("reward", "advantage"))
    bonus = temporal_bonus(tables["accuracy"], tables["shuffled"], is_video=tables["is_video"])
    np.testing.assert_allclose(reward.rewards, plain.rewards + bonus)
    np.testing.assert_array_equal(advantage.rewards, plain.rewards)
    np.testing.assert_allclose(advantage.advantages, plain.advantages + bonus)


def test_grpo_is_the_case_without_shuffled_rows():
    tables = batch()
    alone = combine(GRPOConfig(), tables["accuracy"], tables["other"], tables["lengths"])
    np.testing.assert_array_equal(alone.advantages, group_advantages(tables["accuracy"]))
    assert not {"temporal_signal", "temporal_bonus"} & set(alone.metrics)  # no video: nothing to average over
    videos = combine(GRPOConfig(), tables["accuracy"], tables["other"], tables["lengths"], is_video=True)
    assert videos.metrics["temporal_signal"] == videos.metrics["temporal_bonus"] == 0.0


def test_groups_without_signal_are_named_and_counted():
    signal = combine(GRPOConfig(), **batch())
    np.testing.assert_array_equal(signal.has_signal, [True, False, False])
    assert signal.metrics["no_signal"] == pytest.approx(2 / 3)
    assert signal.metrics["all_correct"] == signal.metrics["all_wrong"] == pytest.approx(1 / 3)
    assert signal.metrics["correct"] == 0.5


def test_a_group_of_one_teaches_nothing_and_breaks_nothing():
    signal = combine(GRPOConfig(), [[1.0]], [[1.0]], [[400]], shuffled=[[0.0]], is_video=[True])
    np.testing.assert_array_equal(signal.advantages, [[0.0]])
    assert not signal.has_signal[0]
    assert all(np.isfinite(value) for value in signal.metrics.values())


@settings(deadline=None, max_examples=50)
@given(tables(low=0, high=1), st.sampled_from(["reward", "advantage"]), st.booleans(), st.integers(0, 3))
def test_everything_is_finite(accuracy, placement, normalize_std, shuffled):
    config = GRPOConfig(placement=placement, normalize_std=normalize_std)
    zeros = np.zeros((len(accuracy), shuffled))
    signal = combine(config, accuracy, accuracy, accuracy * 900, shuffled=zeros, is_video=True)
    assert np.isfinite(signal.advantages).all()
    assert all(np.isfinite(value) for value in signal.metrics.values())
    assert 0 <= signal.metrics["temporal_signal"] <= 2


def test_temporal_signal_of_nothing_is_zero():
    assert temporal_signal(np.zeros((0, 4)), np.zeros((0, 4))) == 0.0
    assert temporal_signal(np.zeros((1, 4)), np.zeros((1, 4))) == 0.0
    assert temporal_signal([[0.3, 0.3]], [[0, 0]]) == 1.0


# --- settings -------------------------------------------------------------------------------------


def test_the_default_is_the_papers():
    assert GRPOConfig.paper() == GRPOConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -0.1),
        ("mu", float("nan")),
        ("beta", float("inf")),
        ("threshold", 1.0),
        ("length_low", 600),
        ("clip_low", -1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(UsageError, match=name):
        dataclasses.replace(GRPOConfig(), **{name: value})


@pytest.mark.parametrize("name", ["rules", "p", "placement", "aggregation", "ratio"])
def test_unknown_choices_are_refused_with_the_known_ones(name):
    config = GRPOConfig()
    object.__setattr__(config, name, "bogus")  # past the type checks that only tests have
    with pytest.raises(UsageError, match=f"{name} is 'bogus'; use one of: "):
        config.__post_init__()


# --- answers that are too long --------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_overlong_penalty_is_dapos(cache, room, seed):
    """As arXiv 2503.14476 defines it, one answer at a time; an answer cannot be longer than the limit."""
    limit = cache + room
    lengths = np.random.default_rng(seed).integers(0, limit + 1, (2, 5))
    expected = [
        [0.0 if n <= limit - cache else ((limit - cache) - n) / cache for n in group] for group in lengths.tolist()
    ]
    np.testing.assert_allclose(overlong_penalty(lengths, limit=limit, cache=cache), expected, atol=1e-12)


def test_overlong_penalty_by_hand():
    penalty = overlong_penalty([[0, 80, 85, 90, 100]], limit=100, cache=20)
    np.testing.assert_allclose(penalty, [[0, 0, -0.25, -0.5, -1]])
    np.testing.assert_array_equal(overlong_penalty([[0, 100]], limit=100, cache=0), [[0, 0]])


def test_the_penalty_is_a_part_of_the_reward():
    tables = batch(lengths=[[70, 80, 90, 100]] * 3)
    plain, penalised = (combine(GRPOConfig(overlong=cache), **tables, limit=100) for cache in (0, 20))
    np.testing.assert_allclose(penalised.rewards - plain.rewards, [[0, 0, -0.5, -1]] * 3)
    np.testing.assert_allclose(penalised.bonuses["overlong"], [[0, 0, -0.5, -1]] * 3)
    np.testing.assert_allclose(penalised.advantages, group_advantages(penalised.rewards))
    assert penalised.metrics["overlong_penalty"] == pytest.approx(-0.375)
    assert not {"overlong_penalty"} & plain.metrics.keys()


def test_dual_clip_bounds_from_above_one():
    assert GRPOConfig(dual_clip=3.0).dual_clip == 3.0
    with pytest.raises(UsageError, match=r"dual_clip is 0\.5; it must be above 1"):
        GRPOConfig(dual_clip=0.5)
