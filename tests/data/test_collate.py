import numpy as np
import pytest
from reference_model import PATCH_VALUES, layout, mixed_cases

from vr1_jax.data.collate import Bucket, DoesNotFit, collate


def test_bucket_of_a_prompt_is_the_smallest_that_holds_it():
    video, image, two_images, both, text = (case.encoded.bucket for case in mixed_cases())
    assert (video.slices, video.patches) == (3, 72)
    assert (image.slices, image.patches) == (1, 120)
    assert (two_images.slices, two_images.patches) == (2, 40)
    assert (both.slices, both.patches) == (3, 24)
    assert text == Bucket(0, 0, 12)


def test_batch_is_left_padded_and_says_where_everything_is():
    cases = mixed_cases()
    arrays = collate([c.encoded for c in cases], Bucket(4, 128, 80), layout(), pad_token=9, values=PATCH_VALUES)
    for row, case in enumerate(cases):
        pad = 80 - len(case.tokens)
        assert (arrays["tokens"][row, :pad] == 9).all()
        assert (arrays["tokens"][row, pad:] == case.tokens).all()
        assert arrays["mask"][row].tolist() == [False] * pad + [True] * len(case.tokens)
        # Follow every visual token to its unit, and the unit to its pixels.
        units = arrays["patches"][row].reshape(-1, 4, PATCH_VALUES)
        slots = arrays["visual_slots"][row]
        media = [m.patches.reshape(-1, 4, PATCH_VALUES) for m in case.media]
        expected = np.concatenate(media) if media else np.zeros((0, 4, PATCH_VALUES))
        np.testing.assert_array_equal(units[slots[slots >= 0]], expected)
        assert (arrays["patch_windows"][row] >= 0).sum() == 4 * len(expected)


@pytest.mark.parametrize("bucket", [Bucket(2, 128, 80), Bucket(4, 68, 80), Bucket(4, 128, 66)])
def test_too_large_prompts_are_refused_not_cut(bucket):
    with pytest.raises(DoesNotFit, match="does not fit"):
        collate([mixed_cases()[0].encoded], bucket, layout(), pad_token=0, values=PATCH_VALUES)
