"""Image files of every kind that occurs, and folders of frames."""

import numpy as np
import pytest
from PIL import Image

from vr1_jax.media.frames import IMAGE_BUDGET, TRAINING_BUDGET, MediaError, frame_size
from vr1_jax.media.images import (
    natural_key,
    open_rgb,
    read_frame_folder,
    read_image,
    resize_frame,
    resize_video_frame,
)


@pytest.fixture
def picture():
    rows, columns = np.mgrid[:90, :140]
    return np.stack([rows * 2, columns, (rows + columns) % 256], -1).astype(np.uint8)


def test_resize_is_pillows_bicubic(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", IMAGE_BUDGET)
    np.testing.assert_array_equal(got, np.asarray(Image.fromarray(picture).resize((140, 84))))


def test_extension_is_not_believed(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=90)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert open_rgb(tmp_path / "a.png").shape == picture.shape


def test_transparency_is_laid_on_white(tmp_path, picture):
    alpha = np.zeros((90, 140, 1), np.uint8)
    alpha[:, 70:] = 255
    Image.fromarray(np.concatenate([picture, alpha], -1)).save(tmp_path / "a.png")
    got = open_rgb(tmp_path / "a.png")
    assert (got[:, :70] == 255).all()
    np.testing.assert_array_equal(got[:, 70:], picture[:, 70:])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_other_modes_are_pillows_conversion(tmp_path, picture, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    image = Image.fromarray(picture).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as saved:
        np.testing.assert_array_equal(open_rgb(tmp_path / f"a.{suffix}"), np.asarray(saved.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path, suffix):
    grey = np.arange(60 * 60, dtype=np.uint16).reshape(60, 60) * 18
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    got = open_rgb(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(got, np.repeat((grey >> 8)[..., None], 3, -1))


def test_orientation_tag_is_left_alone(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    assert open_rgb(tmp_path / "a.png").shape == picture.shape


def test_refusals_name_the_file(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    Image.fromarray(np.zeros((4, 1000, 3), np.uint8)).save(tmp_path / "thin.png")
    Image.fromarray(np.zeros((60, 60), np.float32)).save(tmp_path / "float.tiff")
    reasons = {
        "cut.png": "undecodable",
        "empty.png": "undecodable",
        "text.png": "undecodable",
        "thin.png": "aspect_ratio",
        "float.tiff": "undecodable",
        "absent.png": "missing",
        ".": "undecodable",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError) as caught:
            read_image(tmp_path / name, IMAGE_BUDGET)
        assert caught.value.reason == reason
        assert str(tmp_path / name) in str(caught.value)


def test_decompression_bomb_is_refused_unread(tmp_path):
    header = b"P6\n60000 60000\n255\n"
    (tmp_path / "bomb.ppm").write_bytes(header + b"x" * 100)
    with pytest.raises(MediaError) as caught:
        open_rgb(tmp_path / "bomb.ppm")
    assert caught.value.reason == "too_large"


def test_folder_of_frames(tmp_path, picture):
    for number in range(1, 13):
        Image.fromarray(np.full_like(picture, number * 10)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    frames, indices, total = read_frame_folder(tmp_path, TRAINING_BUDGET, fps=3.0)
    assert (total, len(indices)) == (12, 8)
    assert frames.shape[1:3] == frame_size(90, 140, 8, TRAINING_BUDGET)
    np.testing.assert_array_equal(frames[:, 0, 0, 0], (indices + 1) * 10)


def test_folder_with_a_frame_of_another_size(tmp_path, picture):
    for number in range(4):
        Image.fromarray(picture[: 90 - number]).save(tmp_path / f"{number}.png")
    with pytest.raises(MediaError, match="differs from the first"):
        read_frame_folder(tmp_path, TRAINING_BUDGET, fps=3.0)


def test_folder_without_frames(tmp_path):
    with pytest.raises(MediaError, match="no frames"):
        read_frame_folder(tmp_path, TRAINING_BUDGET, fps=3.0)


def test_natural_order():
    names = ["f10.jpg", "f9.jpg", "f1b.jpg", "a.jpg", "2.jpg", "f001.jpg"]
    assert sorted(names, key=natural_key) == ["2.jpg", "a.jpg", "f001.jpg", "f1b.jpg", "f9.jpg", "f10.jpg"]


def test_video_frames_are_resized_in_floats_and_rounded_once():
    """Within one level of torch's antialiased bicubic, the reference's; the other way is up to ten off."""
    import torch

    rng = np.random.default_rng(0)
    frame = np.kron(rng.integers(0, 2, (30, 40)) * 255, np.ones((9, 9))).astype(np.uint8)  # hard edges
    frame = np.stack([frame, 255 - frame, frame[::-1]], axis=-1)
    floats = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(
        floats, (112, 196), mode="bicubic", antialias=True, align_corners=False
    )
    wanted = wanted.clamp(0, 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(resize_video_frame(frame, 112, 196) - wanted).max() <= 1
    assert np.abs(resize_frame(frame, 112, 196) - wanted).max() > 1
