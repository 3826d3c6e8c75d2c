"""Readers on clips whose every frame shows its own number, in the containers and codecs that occur.

The packet listing decides between decord and PyAV; the reference is decoding from the start.
"""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from vr1_jax.media.container import MAX_FRAME_PIXELS, list_packets
from vr1_jax.media.frames import TRAINING_BUDGET, FrameBudget, MediaError, frame_indices, frame_size
from vr1_jax.media.video import read_clip, read_decord, read_in_order, read_seeking

FRAMES = 90
CLOSED = {"x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=3:open-gop=0:log-level=none"}
OPEN = {"x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=3:open-gop=1:log-level=none"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=24:bframes=0:log-level=none"}
HEVC_OPEN = {"x265-params": "keyint=24:min-keyint=24:scenecut=0:open-gop=1:log-level=none"}
CLIPS = {  # file: codec, options, reader
    "closed.mp4": ("libx264", CLOSED, "decord"),
    "closed.mkv": ("libx264", CLOSED, "decord"),
    "closed.avi": ("libx264", CLOSED, "pyav"),
    "closed.ts": ("libx264", CLOSED, "pyav"),
    "closed.flv": ("libx264", CLOSED, "pyav"),
    "open.mp4": ("libx264", OPEN, "pyav"),
    "open.mkv": ("libx264", OPEN, "pyav"),
    "refresh.mp4": ("libx264", REFRESH, "pyav"),
    "hevc_open.mp4": ("libx265", HEVC_OPEN, "pyav"),
    "mpeg4.mp4": ("mpeg4", {"g": "24"}, "decord"),
    "mpeg4_b.mp4": ("mpeg4", {"g": "24", "bf": "2"}, "pyav"),
    "mpeg4_b.avi": ("mpeg4", {"g": "24", "bf": "2"}, "pyav"),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}, "pyav"),
    "vp9.webm": ("libvpx-vp9", {"g": "24", "deadline": "realtime", "cpu-used": "8"}, "decord"),
    "vp8.webm": ("libvpx", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}, "decord"),
    "pictures.gif": ("gif", {}, "pyav"),
}


def numbered_frame(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    """A frame with its number in eight black or white bars."""
    frame = np.full((height, width, 3), 60, np.uint8)
    for bit in range(8):
        left, right = bit * width // 8, (bit + 1) * width // 8
        frame[height // 4 : 3 * height // 4, left:right] = 230 if number >> bit & 1 else 20
    return frame


def number_of(frame: np.ndarray) -> int:
    height, width = frame.shape[:2]
    bars = frame[3 * height // 8 : 5 * height // 8].mean((0, 2))
    return sum(int(bars[int((bit + 0.5) * width / 8)] > 128) << bit for bit in range(8))


def write_clip(path, codec="libx264", options=CLOSED, frames=FRAMES, size=(160, 96), times=None, rate=25):
    """`times` in milliseconds make a variable frame rate."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "bgr8" if codec == "gif" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {name: write_clip(folder / name, codec, options) for name, (codec, options, _) in CLIPS.items()}


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_asked_for(clips, name):
    clip = read_clip(clips[name], TRAINING_BUDGET)
    assert clip.reader == CLIPS[name][2], clip.reason
    assert bool(clip.reason) == (clip.reader == "pyav")
    assert clip.total_frames == FRAMES
    assert clip.fps == pytest.approx(25, rel=0.02)
    assert clip.indices.tolist() == frame_indices(FRAMES, 6).tolist()
    assert [number_of(frame) for frame in clip.frames] == clip.indices.tolist()
    np.testing.assert_allclose(clip.timestamps, clip.indices / 25, atol=0.02)


@pytest.mark.parametrize("name", [name for name in CLIPS if "avi" not in name])
def test_any_selection_equals_decoding_in_order(clips, name):
    """Sixteen random selections by the reader chosen and by seeking."""
    rng = np.random.default_rng(0)
    listing = list_packets(clips[name])
    everything = list(read_in_order(clips[name], listing, np.arange(FRAMES)))
    readers = [read_decord] if listing.doubt is None else []
    readers += [read_seeking] if listing.seekable and "refresh" not in name else []
    for read in readers:
        for _ in range(16):
            indices = np.sort(rng.choice(FRAMES, 8, replace=False))
            for index, frame in zip(indices, read(clips[name], listing, indices), strict=True):
                np.testing.assert_array_equal(frame, everything[index])


@pytest.mark.parametrize("name", ["open.mp4", "mpeg4_b.mp4", "refresh.mp4", "hevc_open.mp4"])
def test_doubts_about_decord_are_deserved(clips, name):
    """decord without the listing's veto returns other frames: the reason that the veto exists."""
    listing = list_packets(clips[name])
    wrong = 0
    for start in range(8):
        indices = np.arange(start, FRAMES, 11)
        got = [number_of(frame) for frame in read_decord(clips[name], listing, indices)]
        wrong += sum(number != index for number, index in zip(got, indices, strict=True))
    assert wrong


def test_variable_frame_rate_counts_by_time(tmp_path):
    gaps = np.random.default_rng(0).integers(10, 300, FRAMES)
    times = np.cumsum(gaps) - gaps[0]
    clip = read_clip(write_clip(tmp_path / "a.mp4", times=times), TRAINING_BUDGET)
    assert clip.duration == pytest.approx(times[-1] / 1000, rel=0.05)
    np.testing.assert_allclose(clip.timestamps, times[clip.indices] / 1000, atol=1e-3)
    assert [number_of(frame) for frame in clip.frames] == clip.indices.tolist()


def test_a_wrong_frame_rate_in_the_header_is_not_believed(tmp_path):
    """Eight seconds that claim 1000 frames per second still give sixteen frames."""
    times = np.arange(80) * 100
    path = write_clip(tmp_path / "a.mkv", times=times, frames=80, rate=1000)
    assert list_packets(path).header_rate == 1000
    clip = read_clip(path, TRAINING_BUDGET)
    assert clip.fps == pytest.approx(10)
    assert len(clip.frames) == 16


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (2, 2), (3, 2), (5, 4)])
def test_short_clips(tmp_path, frames, expected):
    clip = read_clip(write_clip(tmp_path / "a.mp4", frames=frames), TRAINING_BUDGET)
    assert (clip.total_frames, len(clip.frames)) == (frames, expected)
    assert clip.duration == pytest.approx(frames / 25)


def test_odd_sizes_and_budgets(tmp_path):
    path = write_clip(tmp_path / "a.mp4", size=(130, 74))
    budget = FrameBudget(max_frames=4, min_pixels=4 * 784, max_pixels=8 * 784)
    clip = read_clip(path, budget)
    assert clip.frames.shape == (4, *frame_size(74, 130, 4, budget), 3)
    assert clip.sample_fps == pytest.approx(4 / FRAMES * 25)


def test_a_file_without_keyframes_is_read_in_order(clips):
    """Damaged files list none: seeking has nowhere to go."""
    listing = dataclasses.replace(list_packets(clips["closed.mp4"]), keyframes=np.array([], np.int64))
    assert not listing.seekable
    assert number_of(next(read_in_order(clips["closed.mp4"], listing, np.array([50])))) == 50


def test_large_requests_are_read_in_chunks(clips, monkeypatch):
    monkeypatch.setattr("vr1_jax.media.video.CHUNK_BYTES", 160 * 96 * 3 * 2)
    clip = read_clip(clips["closed.mp4"], FrameBudget(fps=100.0, max_frames=64))
    assert [number_of(frame) for frame in clip.frames] == clip.indices.tolist()


def test_what_is_no_video_is_refused(tmp_path, monkeypatch):
    import av

    write_clip(tmp_path / "whole.mp4")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:2000])
    (tmp_path / "text.mp4").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nwhole.mp4\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    names = ["cut.mp4", "text.mp4", "empty.mp4", "list.m3u8", "list.mp4", "sound.mp4", "absent.mp4", "."]
    for name in names:
        with pytest.raises(MediaError) as caught:
            read_clip(tmp_path / name, TRAINING_BUDGET)
        assert str(tmp_path / name) in str(caught.value)
    monkeypatch.setattr("vr1_jax.media.container.MAX_FRAME_PIXELS", 100)
    with pytest.raises(MediaError) as caught:
        read_clip(tmp_path / "whole.mp4", TRAINING_BUDGET)
    assert caught.value.reason == "too_large"
    assert MAX_FRAME_PIXELS > 7680 * 4320
