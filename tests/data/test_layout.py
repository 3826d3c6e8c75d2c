"""Positions, slots and windows against slow references written token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.data.collate import (
    LayoutError,
    PromptLayout,
    VisualBlock,
    mrope_positions,
    patch_layout,
    visual_slots,
)

IMAGE, VIDEO = 100, 101


def layout(**changes):
    return PromptLayout(visual_tokens=(IMAGE, VIDEO), tokens_per_second=2.0, **changes)


def slow_positions(parts, rule, tokens_per_second=2.0):
    """One token at a time, in plain Python."""
    out, following = [], 0
    for part in parts:
        if isinstance(part, int):
            for _ in range(part):
                out.append((following,) * 3)
                following += 1
            continue
        slices, rows, columns = part.grid
        start, top = following, following
        for s in range(slices):
            time = int(np.float32(s) * (np.float32(tokens_per_second) * np.float32(part.seconds_per_slice)))
            for row in range(rows // 2):
                for column in range(columns // 2):
                    out.append((start + time, start + row, start + column))
                    top = max(top, *out[-1])
        following = top + 1 if rule == "published" else start + max(rows, columns) // 2
    return np.array(out).T.reshape(3, -1)


def tokens_of(parts):
    out = []
    for part in parts:
        if isinstance(part, int):
            out += [7] * part
        else:
            out += [VIDEO if part.seconds_per_slice else IMAGE] * part.units(2)
    return np.array(out, int)


side = st.integers(1, 6).map(lambda n: 2 * n)
images = st.builds(lambda r, c: VisualBlock((1, r, c)), side, side)
videos = st.builds(
    lambda s, r, c, t: VisualBlock((s, r, c), t), st.integers(1, 5), side, side, st.floats(0.015625, 30, width=32)
)
prompts = st.lists(st.one_of(st.integers(1, 9), images, videos), min_size=1, max_size=7)


@pytest.mark.parametrize("rule", ["published", "transformers5"])
@given(parts=prompts)
@settings(deadline=None, max_examples=100)
def test_positions_match_the_slow_reference(rule, parts):
    blocks = [part for part in parts if not isinstance(part, int)]
    got = mrope_positions(tokens_of(parts), blocks, layout(rule=rule))
    np.testing.assert_array_equal(got, slow_positions(parts, rule))


def test_positions_of_the_drawn_example():
    parts = [2, VisualBlock((2, 2, 4), 1.0), 1]
    got = mrope_positions(tokens_of(parts), parts[1:2], layout())
    np.testing.assert_array_equal(got, [[0, 1, 2, 2, 4, 4, 5], [0, 1, 2, 2, 2, 2, 5], [0, 1, 2, 3, 2, 3, 5]])
    theirs = mrope_positions(tokens_of(parts), parts[1:2], layout(rule="transformers5"))
    assert theirs[0].tolist() == [0, 1, 2, 2, 4, 4, 4]


def test_intervals_are_multiplied_before_they_are_cut():
    """0.4 s at 2 tokens/s: truncating the interval first would put every slice at time zero."""
    positions = mrope_positions(np.full(4, VIDEO), [VisualBlock((4, 2, 2), 0.4)], layout())
    assert positions[0].tolist() == [0, 0, 1, 2]


def test_constant_spacing_ignores_measured_time_of_videos_only():
    parts = [VisualBlock((3, 2, 2), 0.1), 1, VisualBlock((1, 2, 4))]
    positions = mrope_positions(tokens_of(parts), [parts[0], parts[2]], layout(spacing="constant"))
    assert positions[0].tolist() == [0, 2, 4, 5, 6, 6]


@given(parts=prompts, spare=st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_slots_number_the_units_of_padded_slices(parts, spare):
    blocks = [part for part in parts if not isinstance(part, int)]
    per_slice = max((b.units(2) // b.grid[0] for b in blocks), default=0) + spare
    slots = visual_slots(tokens_of(parts), blocks, per_slice, layout())
    expected, first = [], 0
    for part in parts:
        if isinstance(part, int):
            expected += [-1] * part
        else:
            for s in range(part.grid[0]):
                expected += [(first + s) * per_slice + u for u in range(part.units(2) // part.grid[0])]
            first += part.grid[0]
    assert slots.tolist() == expected


@given(rows=st.integers(1, 12).map(lambda n: 2 * n), columns=st.integers(1, 12).map(lambda n: 2 * n))
@settings(deadline=None, max_examples=60)
def test_patches_lie_unit_by_unit_in_windows_from_the_corner(rows, columns):
    coords, windows = patch_layout((1, rows, columns), layout())
    expected = [
        (2 * r + i, 2 * c + j)
        for r in range(rows // 2)
        for c in range(columns // 2)
        for i in (0, 1)
        for j in (0, 1)
    ]
    assert coords.tolist() == [list(pair) for pair in expected]
    by_window = {}
    for (row, column), window in zip(expected, windows.tolist(), strict=True):
        by_window.setdefault(window, set()).add((row // 8, column // 8))
    assert all(len(places) == 1 for places in by_window.values())  # one place each,
    assert len(by_window) == -(-rows // 8) * -(-columns // 8)  # and each place its own


def test_media_that_do_not_match_the_tokens_are_refused():
    with pytest.raises(LayoutError, match="5 visual tokens where its media need 4"):
        mrope_positions(np.full(5, IMAGE), [VisualBlock((1, 4, 4))], layout())
    with pytest.raises(LayoutError, match="0 visual tokens where its media need 4"):
        visual_slots(np.full(5, 7), [VisualBlock((1, 4, 4))], 4, layout())
