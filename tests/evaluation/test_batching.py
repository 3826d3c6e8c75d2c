"""Batches hold their members, waste little, and take few shapes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.data.collate import Bucket
from vr1_jax.evaluation.batching import (
    BATCH_WASTE,
    MAX_ROWS,
    PATCH_PAIRS_AT_ONCE,
    REUSE_WASTE,
    TOKENS_AT_ONCE,
    Batcher,
    Size,
    round_up,
)

SIZES = st.builds(
    Size,
    st.builds(Bucket, st.integers(0, 32), st.integers(0, 256).map(lambda n: 4 * n), st.integers(1, 9000)),
    st.integers(0, 2000),
)


@given(st.integers(0, 10**6), st.sampled_from([1, 32, 64]))
def test_round_up(count, smallest):
    rounded = round_up(count, smallest)
    assert rounded >= max(count, smallest)
    assert rounded <= max(smallest, 1.25 * count + 1)
    assert round_up(rounded, smallest) == rounded
    assert round_up(count + 1, smallest) >= rounded
    assert smallest != 64 or rounded % 16 == 0  # patches come in units of four


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(SIZES, max_size=20), max_size=4))
def test_batches(chunks):
    batcher = Batcher()
    for sizes in chunks:
        seen = []
        for indices, shape in batcher.batches(sizes):
            members = [sizes[i] for i in indices]
            seen += indices
            assert 1 <= len(members) <= shape.rows <= MAX_ROWS
            assert all(shape.size.holds(member) for member in members)
            assert min(shape.size.bucket.slices, shape.size.bucket.patches) >= 1
            own = sum(member.rounded().cost for member in members)
            # Unused rows up to the next power of two double a batch at most.
            assert shape.cost <= 2 * BATCH_WASTE * REUSE_WASTE * own
            assert shape.rows == 1 or within_limits(shape)
        assert sorted(seen) == list(range(len(sizes)))


def within_limits(shape) -> bool:
    bucket = shape.size.bucket
    return (
        shape.rows * (bucket.tokens + shape.size.answer) <= TOKENS_AT_ONCE
        and shape.rows * bucket.slices * bucket.patches**2 <= PATCH_PAIRS_AT_ONCE
    )


def test_a_mixed_data_set_takes_a_handful_of_shapes():
    """Two thousand records as training has them: most batches full, few programs, little padding."""
    chance = np.random.default_rng(0)

    def draw() -> Size:
        text, answer = int(chance.integers(150, 400)), int(np.clip(chance.normal(380, 120), 40, 768))
        if chance.random() < 0.45:
            slices, patches = int(chance.integers(2, 9)), int(4 * chance.integers(117, 135))
            return Size(Bucket(slices, patches, text + slices * patches // 4), answer)
        patches = int(4 * chance.integers(4, 257))
        return Size(Bucket(1, patches, text + patches // 4), answer)

    batcher, padded, own = Batcher(), 0.0, 0.0
    for _ in range(2000 // 64):
        sizes = [draw() for _ in range(64)]
        own += sum(size.cost for size in sizes)
        for _, shape in batcher.batches(sizes):
            padded += shape.cost
    assert len(batcher.shapes) <= 30
    assert padded <= 1.6 * own


@settings(deadline=None, max_examples=60)
@given(st.lists(SIZES, max_size=40), st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2, 4]))
def test_devices_share_a_batch(sizes, devices, most):
    seen = []
    for indices, shape in Batcher(devices, lambda size: most).batches(sizes):
        seen += indices
        assert shape.rows % devices == 0
        assert len(indices) <= shape.rows <= devices * most
        assert all(shape.size.holds(sizes[i]) for i in indices)
    assert sorted(seen) == list(range(len(sizes)))
