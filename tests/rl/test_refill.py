from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from vr1_jax.data.assemble import Order
from vr1_jax.rl.experience import Pool, of_attempts


def test_metrics_tell_of_everything_sampled():
    """Two batches without signal and a third that has some: the step's accuracy is that of all three."""
    attempts = [
        {"accuracy": 0.0, "accuracy_video": 0.0, "sampled_tokens": 100.0},
        {"accuracy": 1.0, "sampled_tokens": 80.0},  # of images
        {"accuracy": 0.5, "accuracy_video": 0.5, "sampled_tokens": 120.0},
    ]
    metrics = of_attempts(attempts)
    assert metrics.pop("accuracy") == pytest.approx(0.5)
    assert metrics.pop("accuracy_video") == pytest.approx(0.25)
    assert metrics.pop("sampled_tokens") == 300
    assert metrics == {"refilled": 2.0}


def test_one_attempt_stays_as_it_is():
    assert of_attempts([{"reward": 0.3}]) == {"reward": pytest.approx(0.3), "refilled": 0.0}


def test_refilling_leaves_the_kinds_their_shares():
    """Videos have signal in a quarter of their groups, images in most: both keep their share of the updates."""
    rows, rounds, chance = 8, 15, (0.25, 0.8)
    order = Order([440, 560], rows, seed=0)
    rng, learned = np.random.default_rng(0), Counter()
    for step in range(order.steps_per_epoch):
        group, place = order.batch(step)
        pool = Pool(rows)
        for attempt in range(1 + rounds):
            records = [order.record(group, place + row, refill=attempt) for row in range(rows)]
            pool.add((jnp.array(records), jnp.full(rows, group)), rng.random(rows) < chance[group])
            if pool.is_full():
                break
        (_, kinds), has_signal = pool.take()
        assert len(kinds) == rows
        learned.update(kinds[has_signal].tolist())
    assert learned[0] / learned.total() == pytest.approx(0.44, abs=0.01)


def test_a_pool_gives_rows_with_signal_first():
    pool = Pool(3)
    pool.add(jnp.arange(4), np.array([False, True, False, False]))
    assert not pool.is_full()
    rows, has_signal = pool.take()
    assert (rows.tolist(), has_signal.tolist()) == ([1, 0, 2], [True, False, False])
    pool.add(jnp.arange(10, 14), np.array([True, True, True, False]))
    assert pool.is_full()
    rows, has_signal = pool.take()
    assert (rows.tolist(), has_signal.all()) == ([1, 10, 11], True)
