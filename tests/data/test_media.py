"""MediaReader end to end: determinism, damaged bytes, and every published sample clip."""

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vr1_jax.media.container import list_packets
from vr1_jax.media.frames import IMAGE_BUDGET, TRAINING_BUDGET, MediaError
from vr1_jax.media.images import read_image, resize_video_frame
from vr1_jax.media.reader import MediaReader
from vr1_jax.media.video import read_clip, to_rgb

VARIANTS = 12
UNREADABLE = {  # among the published samples: no pictures, cut, or damaged
    "androidx__audio_only.mp4",
    "decord__corrupted.mp4",
    "truncated_faststart__bbb_2b.mp4",
    "truncated_faststart__mediabunny_edts.mp4",
    "truncated_no_moov__clevrer.mp4",
}


@pytest.fixture(scope="module")
def reader():
    with MediaReader(deadline=20.0) as media:
        yield media


@pytest.fixture
def clip_file(tmp_path):
    return write_noise_clip(tmp_path / "a.mp4")


def write_noise_clip(path, codec="libx264", frames=40):
    import av

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr8" if codec == "gif" else "yuv420p"
        for _ in range(frames):
            pixels = np.kron(rng.integers(0, 256, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def same_clip(a, b) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a)]
    return all(np.array_equal(x, y) for x, y in pairs)


def test_the_child_returns_what_the_readers_return(reader, clip_file, tmp_path):
    assert same_clip(reader.video(clip_file, TRAINING_BUDGET), read_clip(clip_file, TRAINING_BUDGET))
    Image.new("RGB", (100, 60), (10, 200, 30)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        reader.image(tmp_path / "a.png", IMAGE_BUDGET), read_image(tmp_path / "a.png", IMAGE_BUDGET)
    )


def test_a_folder_is_a_clip_at_its_own_rate(reader, tmp_path):
    for number in range(12):
        Image.new("RGB", (60, 60), (number * 20,) * 3).save(tmp_path / f"{number + 1}.png")
    clip = reader.frame_folder(tmp_path, TRAINING_BUDGET)
    assert (clip.total_frames, clip.duration, clip.fps, len(clip.frames)) == (12, 4.0, 3.0, 8)
    assert clip.frames[:, 0, 0, 0].tolist() == (clip.indices * 20).tolist()


def test_the_decoding_process_imports_no_jax():
    program = (
        "import sys; from vr1_jax.media import reader; reader._import_decoders(); "
        "print({'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_results_do_not_depend_on_history(reader, clip_file, tmp_path):
    before = reader.video(clip_file, TRAINING_BUDGET)
    (tmp_path / "bad.mp4").write_bytes(clip_file.read_bytes()[:500])
    with pytest.raises(MediaError, match=r"bad\.mp4"):
        reader.video(tmp_path / "bad.mp4", TRAINING_BUDGET)
    assert same_clip(before, reader.video(clip_file, TRAINING_BUDGET))
    reader.close()
    assert same_clip(before, reader.video(clip_file, TRAINING_BUDGET))


def test_a_reader_travels_to_worker_processes(reader, clip_file):
    with pickle.loads(pickle.dumps(reader)) as copy:
        assert copy.deadline == reader.deadline
        assert same_clip(copy.video(clip_file, TRAINING_BUDGET), reader.video(clip_file, TRAINING_BUDGET))


def test_odd_names_reach_the_decoder(reader, clip_file, tmp_path):
    for name in ("file:a.mp4", "http:x.mp4", "a %d [1] #é.mp4", "concat:a|b.mp4", "line\nbreak.mp4"):
        copy = tmp_path / name
        copy.write_bytes(clip_file.read_bytes())
        assert len(reader.video(copy, TRAINING_BUDGET).frames) == 8


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, a stretch cut out, or the end missing."""
    kind = rng.integers(3)
    if kind == 0:
        array = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0, len(array), max(1, len(array) // int(rng.choice([50, 500, 5000]))))
        array[where] = rng.integers(0, 256, len(where))
        return array.tobytes()
    start = int(rng.integers(1, len(data)))
    if kind == 1:
        return data[:start]
    return data[:start] + data[start + int(rng.integers(1, 2000)) :]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "gif", "png", "jpg", "webp"])
def test_damaged_bytes_are_read_or_refused(reader, tmp_path, suffix):
    """Every variant gives a whole sample or one MediaError, the same again in a fresh process."""
    video = suffix in ("mp4", "mkv", "avi", "gif")
    source = tmp_path / f"whole.{suffix}"
    if video:
        write_noise_clip(source, codec="gif" if suffix == "gif" else "libx264")
    else:
        pixels = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(source)
    rng = np.random.default_rng(sum(suffix.encode()))
    for number in range(VARIANTS):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(damaged(source.read_bytes(), rng))
    first = [outcome(reader, tmp_path / f"{number}.{suffix}", video) for number in range(VARIANTS)]
    reader.close()
    second = [outcome(reader, tmp_path / f"{number}.{suffix}", video) for number in reversed(range(VARIANTS))]
    assert first == second[::-1]
    losses = [result for result in first if isinstance(result, str)]
    assert losses, "no damage was noticed"
    assert not [loss for loss in losses if loss.startswith(("timeout", "missing"))]


def outcome(reader, path, video) -> bytes | str:
    try:
        frames = reader.video(path, TRAINING_BUDGET).frames if video else reader.image(path, IMAGE_BUDGET)
    except MediaError as error:
        return f"{error.reason}: {error}"
    assert frames.shape[-3] % 28 == frames.shape[-2] % 28 == 0
    return frames.tobytes()


def test_every_published_clip_is_right_or_refused(reader, shared_data):
    """Frames compared with PyAV decoding from the start, which neither seeks nor trusts a header."""
    files = sorted(p for folder in ("videos", "Video-R1-data") for p in (shared_data / folder).rglob("*.*"))
    files = [path for path in files if path.suffix not in (".json", ".png") and path.is_file()]
    facts = json.loads((shared_data / "video_facts.json").read_text())
    assert len(files) >= 40
    refused = set()
    for path in files:
        try:
            clip = reader.video(path, TRAINING_BUDGET)
        except MediaError as error:
            refused.add((path.name, error.reason))
            continue
        expected = facts[str(path.relative_to(shared_data))]["pyav"]["decodable_frames"]
        assert clip.total_frames == expected, path.name
        if clip.total_frames <= 600:
            check_frames(path, clip)
    assert refused == {(name, "undecodable") for name in UNREADABLE}


def check_frames(path, clip):
    """decord converts 10-bit pixels a little differently: up to 4 levels on average."""
    import av

    deep = "10bit" in path.name
    with av.open(str(path)) as container:
        wanted = dict(zip(clip.indices.tolist(), clip.frames, strict=True))
        stream = container.streams.best("video")
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                expected = resize_video_frame(to_rgb(frame), *clip.frames.shape[1:3]).astype(int)
                difference = np.abs(expected - wanted.pop(number))
                assert difference.mean() <= (4 if deep else 0), f"{path.name}, frame {number}"
        assert not wanted


def test_published_images(reader, shared_data):
    facts = json.loads((shared_data / "image_facts.json").read_text())
    for name, fact in facts.items():
        path = shared_data / name
        if fact.get("load") != "ok":
            with pytest.raises(MediaError, match=path.name):
                reader.image(path, IMAGE_BUDGET)
            continue
        pixels = reader.image(path, IMAGE_BUDGET)
        width, height = fact["size"]
        assert abs(pixels.shape[1] / pixels.shape[0] / (width / height) - 1) < 0.35, name


def test_hidden_frames_are_not_sampled(reader, shared_data):
    """Two files whose edit lists hide frames: decord repeats the last one, or hangs."""
    for name, shown in (("dup_edit_list__clevrer.mp4", 77), ("hang_edit_list__videor1_video1.mp4", 344)):
        path = shared_data / "videos" / "derived" / name
        clip = reader.video(path, TRAINING_BUDGET)
        assert (clip.total_frames, clip.reader) == (shown, "pyav")
        assert list_packets(path).hidden > 0
