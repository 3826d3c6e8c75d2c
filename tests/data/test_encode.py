import numpy as np
import pytest
from tiny_world import encoder_of, layout_of, record, write_image, write_records, write_video

from vr1_jax.data.collate import Bucket, collate
from vr1_jax.data.encode import shuffled_patches, shuffled_slots
from vr1_jax.media.frames import MediaError, patchify


@pytest.fixture
def samples(tmp_path):
    write_video(tmp_path / "a.mp4", 1)
    write_video(tmp_path / "still.mp4", 1, frames=1)
    write_image(tmp_path / "a.png", 2)
    text = record(3, "text", "") | {"path": None}
    kinds = [record(0, "video", "a.mp4"), record(1, "image", "a.png"), record(2, "video", "still.mp4"), text]
    return write_records(tmp_path / "r.json", kinds)


def test_video_image_and_text(samples, tmp_path, tiny_tokenizer, media):
    encode = encoder_of(tiny_tokenizer)
    video, image, still, text = (encode(sample, media, tmp_path) for sample in samples)
    assert video.prompt.blocks[0].grid == (4, 4, 4)
    assert video.seconds_per_slice == video.prompt.blocks[0].seconds_per_slice == 1.0  # 8 frames, 2 a second
    assert (video.prompt.tokens == tiny_tokenizer.video_token).sum() == 16
    assert image.prompt.blocks[0].grid == (1, 4, 4)
    assert image.seconds_per_slice == 0
    assert (image.prompt.tokens == tiny_tokenizer.image_token).sum() == 4
    assert still.prompt.blocks[0].grid == (1, 4, 4)
    assert text.view is None
    assert text.prompt.bucket.slices == 0
    assert video.supervised is None


def test_supervised_prompts_bring_their_answer(samples, tmp_path, tiny_tokenizer, media):
    encoded = encoder_of(tiny_tokenizer, supervised="answer")(samples[0], media, tmp_path)
    assert encoded.supervised.target[-1] == tiny_tokenizer.end_of_turn
    assert "I look." in tiny_tokenizer.decode(encoded.supervised.target)
    assert (encoded.prompt.tokens == encoder_of(tiny_tokenizer)(samples[0], media, tmp_path).prompt.tokens).all()


def test_shuffled_frames_are_the_same_frames_in_another_order(samples, tmp_path, tiny_tokenizer, media):
    encode = encoder_of(tiny_tokenizer)
    video = encode(samples[0], media, tmp_path)
    for seed in range(20):
        patches, order = shuffled_patches(video, np.random.default_rng(seed), encode.geometry)
        assert (patches != video.prompt.patches[0]).any()
        frames = [patchify(frame[None])[0].tobytes() for frame in video.view.frames]
        # Slices are (t, patch, (channel, frame, row, column)): take them apart into frames again.
        pairs = patches.reshape(4, 16, 3, 2, 196)
        found = [
            np.repeat(pairs[m, :, :, f][None, :, :, None], 2, axis=3).reshape(1, 16, -1).tobytes()
            for m in range(4)
            for f in range(2)
        ]
        assert sorted(found) == sorted(frames)
        assert found == [frames[n] for n in order]
        assert found != frames


def test_shuffled_slices_only_move_the_slots(samples, tmp_path, tiny_tokenizer, media):
    video = encoder_of(tiny_tokenizer)(samples[0], media, tmp_path)
    layout = layout_of(tiny_tokenizer)
    arrays = collate([video.prompt], Bucket(6, 24, 256), layout, pad_token=0, values=1176)
    slots = arrays["visual_slots"][0]
    for seed in range(20):
        moved, order = shuffled_slots(video, slots, 6, np.random.default_rng(seed))
        assert moved.dtype == slots.dtype
        assert ((moved < 0) == (slots < 0)).all()
        before, after = slots[slots >= 0].reshape(4, 4), moved[slots >= 0].reshape(4, 4)
        assert (after[:, 0] // 6 == order).all()
        assert sorted(order) == [0, 1, 2, 3]
        assert order.tolist() != [0, 1, 2, 3]
        assert (after == before[order]).all()


def test_one_frame_cannot_be_shuffled(samples, tmp_path, tiny_tokenizer, media):
    encode = encoder_of(tiny_tokenizer)
    still = encode(samples[2], media, tmp_path)
    rng = np.random.default_rng(0)
    assert shuffled_patches(still, rng, encode.geometry)[0] is still.prompt.patches[0]
    slots = np.array([-1, 0, 1, 2, 3, -1], np.int32)
    assert (shuffled_slots(still, slots, 4, rng)[0] == slots).all()


def test_a_bad_file_raises_its_own_error(samples, tmp_path, tiny_tokenizer, media):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(MediaError, match=r"a\.mp4"):
        encoder_of(tiny_tokenizer)(samples[0], media, tmp_path)
