from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.data.assemble import Order


def places(order: Order, steps: int) -> dict[int, list[int]]:
    """Every group's records in the order they are seen."""
    seen = {}
    for step in range(steps):
        group, place = order.batch(step)
        seen.setdefault(group, []).extend(order.record(group, place + row) for row in range(order.rows))
    return seen


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 9))
def test_a_pass_shows_every_record_once_and_the_next_pass_another_order(sizes, rows, seed):
    order = Order(sizes, rows, seed)
    seen = places(order, 3 * order.steps_per_epoch)
    for group, size in enumerate(sizes):
        passes = [seen[group][at : at + size] for at in range(0, len(seen[group]) - size + 1, size)]
        assert len(passes) >= 3
        assert all(sorted(one) == list(range(size)) for one in passes)
        if size > 12:
            assert passes[0] != passes[1]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 100))
def test_substitutes_visit_the_whole_group(size, place):
    order = Order([size], 4, 0)
    assert {order.record(0, place, attempt) for attempt in range(1, size + 1)} == set(range(size))


def test_shares_of_the_steps_and_seeds():
    order = Order([1000, 100], 4, 0, shares=[0.25, 0.75])
    groups = Counter(order.batch(step)[0] for step in range(order.steps_per_epoch))
    assert abs(groups[1] / order.steps_per_epoch - 0.75) < 0.01
    assert places(Order([50], 4, 0), 5) != places(Order([50], 4, 1), 5)


def test_a_share_of_nothing_is_never_seen():
    order = Order([10, 10], 2, 0, shares=[0.0, 1.0])
    assert {order.batch(step)[0] for step in range(20)} == {1}
