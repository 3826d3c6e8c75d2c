"""Sizes, counts, indices, patches and shuffles against plain restatements of the reference arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.media.frames import (
    EVALUATION_BUDGET,
    IMAGE_BUDGET,
    TRAINING_BUDGET,
    UNIT_PIXELS,
    FrameBudget,
    ImageBudget,
    VisualGeometry,
    frame_digests,
    frame_indices,
    frame_size,
    most_units,
    patchify,
    shuffle_order,
    smart_nframes,
    smart_resize,
)

PROFILE = settings(deadline=None, max_examples=100)
sides = st.integers(1, 4000)


def reference_size(height, width, low, high):
    """qwen-vl-utils' rule, steps spelled out; sides that come out as 0 (its crash) are None."""
    h, w = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if h * w > high:
        beta = math.sqrt(height * width / high)
        h, w = math.floor(height / beta / 28) * 28, math.floor(width / beta / 28) * 28
    elif h * w < low:
        beta = math.sqrt(low / (height * width))
        h, w = math.ceil(height * beta / 28) * 28, math.ceil(width * beta / 28) * 28
    return (h, w) if h and w else None


def reference_frame_limits(frames, low, high):
    """fetch_video's: the minimum, and a maximum that the whole clip's total and 1.05 x minimum move."""
    total = int(float(128000 * 28 * 28 * 0.9))
    return low, max(min(high, total / frames * 2), int(low * 1.05))


def reference_count(total, fps, most):
    fewest = math.ceil(4 / 2) * 2
    most = math.floor(min(most, total) / 2) * 2
    count = total / fps * 2.0
    return math.floor(min(min(max(count, fewest), most), total) / 2) * 2


@PROFILE
@given(sides, sides)
def test_image_size_is_the_reference_size(height, width):
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ValueError, match="200:1"):
            smart_resize(height, width, IMAGE_BUDGET.min_pixels, IMAGE_BUDGET.max_pixels)
        return
    size = smart_resize(height, width, IMAGE_BUDGET.min_pixels, IMAGE_BUDGET.max_pixels)
    expected = reference_size(height, width, 4 * UNIT_PIXELS, 256 * UNIT_PIXELS)
    assert size == expected or (expected is None and min(size) == 28)


@PROFILE
@given(sides, sides, st.sampled_from([1, 2, 4, 10, 16, 64, 768, 2000]), st.booleans())
def test_frame_size_is_the_reference_size(height, width, frames, training):
    if max(height, width) / min(height, width) > 200:
        return
    budget, high = (TRAINING_BUDGET, 128) if training else (EVALUATION_BUDGET, 256)
    limits = reference_frame_limits(frames, 128 * UNIT_PIXELS, high * UNIT_PIXELS)
    expected = reference_size(height, width, *limits)
    size = frame_size(height, width, frames, budget)
    assert size == expected or (expected is None and min(size) == 28)


def test_sizes_of_known_clips():
    assert frame_size(360, 640, 16, TRAINING_BUDGET) == (224, 420)
    assert frame_size(320, 480, 10, TRAINING_BUDGET) == (252, 392)
    assert frame_size(360, 640, 16, EVALUATION_BUDGET) == (336, 588)
    assert smart_resize(42, 70, 1, 10**9) == (56, 56)  # 1.5 and 2.5 units: half to even


@pytest.mark.parametrize(
    ("pixels", "unit", "aspect", "most"),
    [
        (TRAINING_BUDGET.pixel_range(16), 28, 200, 258),
        (TRAINING_BUDGET.pixel_range(16), 28, 2.4, 153),
        ((IMAGE_BUDGET.min_pixels, IMAGE_BUDGET.max_pixels), 28, 200, 256),
        ((56 * 56, 56 * 56), 28, 200, 28),
        ((16 * UNIT_PIXELS, 16 * UNIT_PIXELS), 28, 1, 25),
        ((16 * UNIT_PIXELS, 16 * UNIT_PIXELS), 28, 1.5, 25),
        ((64 * 256, 64 * 256), 16, 200, 128),  # a tie that floating point leaves alone
        ((20_000, 30_000), 28, 10, 39),
    ],
)
def test_no_frame_makes_more_units_and_one_makes_as_many(pixels, unit, aspect, most):
    assert most_units(*pixels, unit, aspect) == most

    def units(height, width):
        return math.prod(smart_resize(height, width, *pixels, unit)) // unit**2

    # All frames small enough to grow, or to keep their size, and thin ones of any size.
    small = pixels[0] * 1.2
    found = max(
        units(height, width)
        for height in range(1, 2 * unit + math.isqrt(int(small)))
        for width in range(height, int(height * aspect) + 1)
        if height * width < small or height < 2 * unit
    )
    assert found == most


@PROFILE
@given(sides, sides, st.integers(1, 400), st.floats(1, 3), st.sampled_from([14, 16, 28, 32]))
def test_no_frame_makes_more_units_than_the_most(height, width, units, slack, unit):
    if max(height, width) / min(height, width) > 200:
        return
    pixels = units * unit**2, int(units * unit**2 * slack)
    assert math.prod(smart_resize(height, width, *pixels, unit)) <= most_units(*pixels, unit) * unit**2


@PROFILE
@given(st.integers(2, 200_000), st.floats(0.1, 1000), st.sampled_from([4, 16, 32, 64, 17]))
def test_frame_count_is_the_reference_count(total, fps, most):
    count = smart_nframes(total, fps, FrameBudget(max_frames=most))
    assert count == reference_count(total, fps, most)
    assert count % 2 == 0
    assert 2 <= count <= total


def test_a_clip_of_one_frame_gives_one_frame():
    assert smart_nframes(1, 25.0, TRAINING_BUDGET) == 1
    assert frame_indices(1, 1).tolist() == [0]
    assert smart_nframes(3, 25.0, TRAINING_BUDGET) == 2


@PROFILE
@given(st.integers(1, 60_000), st.sampled_from([2, 4, 6, 8, 10, 12, 14, 16, 32, 64]))
def test_indices_are_those_of_torch(total, count):
    import torch

    total = max(total, count)
    expected = torch.linspace(0, total - 1, count).round().long().numpy()
    np.testing.assert_array_equal(frame_indices(total, count), expected)


@pytest.mark.parametrize("fields", [{"fps": 0.0}, {"min_frames": 1}, {"min_frames": 20}, {"min_pixels": 10**9}])
def test_impossible_frame_budgets_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        FrameBudget(**fields)


def test_impossible_image_budget_is_refused():
    with pytest.raises(ValueError, match="min_pixels"):
        ImageBudget(min_pixels=0)


@PROFILE
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_patches_and_grid_by_definition(count, unit_rows, unit_columns, seed):
    """Every value of every patch, looked up one by one in the frames."""
    geometry = VisualGeometry(patch=3, merge=2, temporal=2)
    shape = (count, unit_rows * 6, unit_columns * 6, 3)
    frames = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    patches, grid = patchify(frames, geometry)
    assert grid == ((count + 1) // 2, unit_rows * 2, unit_columns * 2)
    assert patches.shape == (grid[0], grid[1] * grid[2], 3 * 2 * 9)
    rng = np.random.default_rng(seed)
    for _ in range(50):
        m, p, r = (int(rng.integers(n)) for n in patches.shape)
        unit, inside = divmod(p, 4)
        row = unit // unit_columns * 2 + inside // 2
        column = unit % unit_columns * 2 + inside % 2
        channel, rest = divmod(r, 18)
        time, pixel = divmod(rest, 9)
        frame = min(m * 2 + time, count - 1)
        expected = frames[frame, row * 3 + pixel // 3, column * 3 + pixel % 3, channel]
        assert patches[m, p, r] == expected


def test_image_patches_are_those_of_the_processor():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    processor = module.Qwen2VLImageProcessorPil(do_rescale=False, do_normalize=False, do_resize=False)
    expected = processor([image], return_tensors="np")
    patches, grid = patchify(image[None])
    assert expected["image_grid_thw"].tolist() == [list(grid)]
    np.testing.assert_array_equal(patches.reshape(-1, patches.shape[-1]), expected["pixel_values"])


def test_frames_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="30x28"):
        patchify(np.zeros((2, 28, 30, 3), np.uint8))


@PROFILE
@given(st.lists(st.integers(0, 3), min_size=0, max_size=16), st.integers(0, 2**32 - 1), st.sampled_from([1, 2]))
def test_a_shuffle_shows_another_clip(contents, seed, slice_frames):
    contents = contents[: len(contents) // 2 * 2]
    order = shuffle_order(contents, np.random.default_rng(seed), slice_frames)
    assert sorted(order) == list(range(len(contents)))
    slices = [tuple(contents[i : i + slice_frames]) for i in range(0, len(contents), slice_frames)]
    shown = [contents[i] for i in order]
    assert (shown == contents) == (len(set(slices)) < 2)
    assert all(order[i + 1] == order[i] + 1 for i in range(0, len(order), 2) if slice_frames == 2)
    again = shuffle_order(contents, np.random.default_rng(seed), slice_frames)
    assert order.tolist() == again.tolist()


def test_shuffles_of_two_frames_swap_them_and_all_orders_occur():
    rng = np.random.default_rng(0)
    assert all(shuffle_order(range(2), rng).tolist() == [1, 0] for _ in range(20))
    assert len({tuple(shuffle_order(range(3), rng)) for _ in range(300)}) == 5


def test_one_frame_has_nothing_to_shuffle():
    assert shuffle_order(range(1), np.random.default_rng(0), 2).tolist() == [0]
    with pytest.raises(ValueError, match="slices of 2"):
        shuffle_order(range(3), np.random.default_rng(0), 2)


def test_digests_tell_frames_apart():
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[2, 0, 0, 0] = 1
    first, second, third = frame_digests(frames)
    assert first == second != third
