import numpy as np
import pytest
from commands import load_command
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import FRAMES, IMAGES, write_image, write_video

from vr1_jax.data.collate import Bucket, EncodedPrompt, PromptLayout, VisualBlock, collate
from vr1_jax.media.frames import MediaError, VisualGeometry
from vr1_jax.media.probe import Prober, grid

choose_buckets = load_command("scripts/choose_buckets.py").choose_buckets

sizes = st.lists(
    st.tuples(st.integers(1, 16), st.integers(4, 1100), st.integers(20, 3000)), min_size=1, max_size=60
)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.integers(2, 6))
def test_every_record_fits_a_bucket_of_its_kind(images, videos, count):
    by_kind = {"image": np.array(images), "video": np.array(videos), "text": np.zeros((0, 3), int)}
    choice = choose_buckets(by_kind, count)
    assert 2 <= sum(map(len, choice.buckets.values())) <= count
    assert set(choice.buckets) == {"image", "video"}
    for kind, buckets in choice.buckets.items():
        for row in by_kind[kind]:
            assert any(bucket.holds(Bucket(*row.tolist())) for bucket in buckets)
        assert all(bucket.patches % 4 == 0 for bucket in buckets)
    assert 0 <= choice.waste < 1


@settings(deadline=None, max_examples=20)
@given(sizes)
def test_one_bucket_is_the_bounding_box(found):
    array = np.array(found)
    (bucket,) = choose_buckets({"video": array}, 1, patch_step=4, token_step=1).buckets["video"]
    slices, patches, tokens = array.max(axis=0)
    assert (bucket.slices, bucket.tokens) == (slices, tokens)
    assert patches <= bucket.patches < patches + 4


def test_more_buckets_waste_less_and_find_the_clusters():
    rng = np.random.default_rng(0)
    small = rng.integers((4, 480, 600), (5, 500, 640), (500, 3))
    large = rng.integers((8, 480, 1200), (9, 500, 1280), (500, 3))
    by_kind = {"video": np.concatenate([small, large])}
    wastes = [choose_buckets(by_kind, count).waste for count in (1, 2, 4)]
    assert wastes[0] > 0.2 > 0.06 > wastes[1] >= wastes[2]
    assert [bucket.slices for bucket in choose_buckets(by_kind, 2).buckets["video"]] == [4, 8]


def test_many_distinct_shapes_are_still_few_candidates():
    rng = np.random.default_rng(0)
    by_kind = {"video": rng.integers((1, 4, 20), (400, 1100, 30000), (3000, 3))}
    assert len(choose_buckets(by_kind, 5).buckets["video"]) == 5
    with pytest.raises(ValueError, match="each kind needs one"):
        choose_buckets(by_kind | {"image": by_kind["video"]}, 1)


def test_probing_finds_the_sizes_that_decoding_gives(tmp_path, media):
    write_video(tmp_path / "a.mp4", 1)
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    for number in range(5):
        write_image(tmp_path / "folder" / f"{number}.png", number)
    with Prober() as probe:
        assert (
            probe("video", tmp_path / "a.mp4", FRAMES) == media.video(tmp_path / "a.mp4", FRAMES).frames.shape[:3]
        )
        folder = media.frame_folder(tmp_path / "folder", FRAMES).frames.shape[:3]
        assert probe("frames", tmp_path / "folder", FRAMES) == folder
        assert probe("image", tmp_path / "a.png", IMAGES) == (1, 56, 56)
        with pytest.raises(MediaError, match=r"bad\.mp4"):
            probe("video", tmp_path / "bad.mp4", FRAMES)
    assert grid((5, 56, 84), VisualGeometry()) == (3, 4, 6)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5), st.integers(1, 5)),
        min_size=1,
        max_size=4,
    ),
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 7)),
)
def test_padding_changes_nothing_that_a_row_says(shapes, extra):
    layout = PromptLayout(visual_tokens=(1, 2), tokens_per_second=2.0)
    prompts = [_prompt(*shape) for shape in shapes]
    least = np.max([[p.bucket.slices, p.bucket.patches, p.bucket.tokens] for p in prompts], axis=0)
    bucket = Bucket(*(least + np.array(extra) * (1, 4, 1)).tolist())
    batch = collate(prompts, bucket, layout, pad_token=0, values=6)
    for row, prompt in enumerate(prompts):
        alone = collate([prompt], prompt.bucket, layout, pad_token=0, values=6)
        at = np.s_[row, ..., bucket.tokens - len(prompt.tokens) :]
        for name in ("tokens", "mask", "positions"):
            np.testing.assert_array_equal(batch[name][at], alone[name][0])
        assert batch["mask"][row].sum() == len(prompt.tokens)
        units = batch["patches"][row].reshape(-1, 4, 6)
        slots = batch["visual_slots"][row]
        np.testing.assert_array_equal(units[slots[slots >= 0]].reshape(-1, 6), prompt.patches[0].reshape(-1, 6))
        assert (batch["patch_windows"][row] >= 0).sum() == prompt.patches[0].shape[0] * prompt.patches[0].shape[1]


def _prompt(slices, rows, columns, before, after) -> EncodedPrompt:
    block = VisualBlock((slices, 2 * rows, 2 * columns), 1.0)
    tokens = [9] * before + [2] * block.units(2) + [9] * after
    patches = np.random.default_rng(len(tokens)).integers(0, 256, (slices, 4 * rows * columns, 6), np.uint8)
    return EncodedPrompt(np.array(tokens, np.int32), (block,), (patches,))
