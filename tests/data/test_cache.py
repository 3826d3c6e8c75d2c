import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_world import FRAMES, IMAGES, batching, encoder_of, layout_of, write_image, write_source, write_video

from vr1_jax.data.pipeline import Pipeline
from vr1_jax.errors import UserError
from vr1_jax.media import cache
from vr1_jax.media.cache import CachedMedia, content_hash, pack, signature, unpack
from vr1_jax.media.frames import FrameBudget, MediaError
from vr1_jax.media.reader import MediaReader
from vr1_jax.tools.cache_writer import Item, Settings, media_items, write_cache

SETTINGS = Settings(FRAMES, IMAGES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Settled files: old enough that their signatures count."""
    root = tmp_path_factory.mktemp("files")
    write_video(root / "a.mp4", 1)
    write_video(root / "b.mp4", 2)
    write_image(root / "c.png", 3)
    for number in range(6):
        write_image(root / "folder" / f"{number}.png", 10 + number)
    (root / "bad.mp4").write_bytes(b"nothing")
    time.sleep(cache.SETTLED_NANOSECONDS / 1e9 + 0.1)
    return root


def items_of(root: Path) -> list[Item]:
    kinds = {"a.mp4": "video", "b.mp4": "video", "c.png": "image", "folder": "frame_folder", "bad.mp4": "video"}
    return [Item(kind, str(root / name)) for name, kind in kinds.items()]


@pytest.fixture(scope="module")
def made(files, tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache") / "cache"
    return directory, write_cache(items_of(files), directory, SETTINGS, processes=1)


@pytest.fixture
def copied(made, files, tmp_path):
    """A cache and its files, to be damaged."""
    shutil.copytree(made[0], tmp_path / "cache")
    shutil.copytree(files, tmp_path / "files")
    return tmp_path / "cache", tmp_path / "files"


def same_clip(left, right) -> None:
    np.testing.assert_array_equal(left.frames, right.frames)
    np.testing.assert_array_equal(left.indices, right.indices)
    np.testing.assert_array_equal(left.timestamps, right.timestamps)
    for name in ("total_frames", "duration", "fps", "reader", "reason", "sample_fps"):
        assert getattr(left, name) == getattr(right, name)


def test_pixels_and_timestamps_are_those_of_decoding(made, files, media):
    directory, report = made
    assert (report.written, report.kept, report.reasons) == (4, 0, {"undecodable": 1})
    cached = CachedMedia(directory, media)
    for name in ("a.mp4", "b.mp4"):
        same_clip(cached.video(files / name, FRAMES), media.video(files / name, FRAMES))
    same_clip(cached.frame_folder(files / "folder", FRAMES), media.frame_folder(files / "folder", FRAMES))
    np.testing.assert_array_equal(cached.image(files / "c.png", IMAGES), media.image(files / "c.png", IMAGES))
    assert cached.take_counts() == {"cached": 4}
    assert cached.take_counts() == {}
    with pytest.raises(MediaError, match=r"bad\.mp4"):
        cached.video(files / "bad.mp4", FRAMES)
    with pytest.raises(MediaError, match="no such file"):
        cached.video(files / "none.mp4", FRAMES)


def test_travels_to_workers(made, files, media):
    cached = pickle.loads(pickle.dumps(CachedMedia(made[0], media)))
    cached.video(files / "a.mp4", FRAMES)
    assert cached.take_counts()["cached"] == 1


def test_other_settings_are_decoded(made, files, media, monkeypatch):
    cached = CachedMedia(made[0], media)
    clip = cached.video(files / "a.mp4", FrameBudget(max_frames=4, min_pixels=56 * 56, max_pixels=56 * 56))
    assert len(clip.frames) == 4
    assert cached.take_counts() == {"decoded": 1, "stale": 1}
    monkeypatch.setattr(cache, "PIXELS_VERSION", 0)
    cached.video(files / "a.mp4", FRAMES)
    assert cached.take_counts()["decoded"] == 1


def test_a_changed_file_is_decoded_anew(copied, media):
    root, directory = copied[1], copied[0].with_name("own")
    write_cache(items_of(root), directory, SETTINGS, processes=1)
    cached = CachedMedia(directory, media)
    path, before = root / "a.mp4", os.stat(root / "a.mp4")
    write_video(path, 5)
    path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # keep what a careless key would look at
    same_clip(cached.video(path, FRAMES), media.video(path, FRAMES))
    assert cached.take_counts() == {"decoded": 1, "stale": 1}
    report = write_cache(items_of(root), directory, SETTINGS, processes=1)
    fresh = CachedMedia(directory, media)
    same_clip(fresh.video(path, FRAMES), media.video(path, FRAMES))
    assert fresh.take_counts() == {"cached": 1}
    assert report.written >= 1


def test_a_moved_file_is_known_by_its_content(made, files, media, tmp_path):
    shutil.copy(files / "b.mp4", tmp_path / "renamed.mp4")
    cached = CachedMedia(made[0], media)
    cached.video(tmp_path / "renamed.mp4", FRAMES)
    assert cached.take_counts()["cached"] == 1


def test_signatures_notice_changes_and_distrust_fresh_files(files, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    assert signature(path) is None
    assert signature(files / "a.mp4") == signature(files / "a.mp4") is not None
    assert signature(files / "a.mp4") != signature(files / "b.mp4")
    assert content_hash(files / "folder") != content_hash(files / "a.mp4")


@pytest.mark.parametrize("where", range(3, 40, 6))
def test_flipped_bits_are_noticed(copied, media, where):
    directory, root = copied
    (shard,) = directory.glob("*.arrayrecord")
    data = bytearray(shard.read_bytes())
    for at in range(len(data) * where // 40, len(data), max(1, len(data) // 40)):
        data[at] ^= 0x10
    shard.write_bytes(data)
    cached = CachedMedia(directory, media)
    for name in ("a.mp4", "b.mp4"):
        same_clip(cached.video(root / name, FRAMES), media.video(root / name, FRAMES))
    counts = cached.take_counts()
    assert counts["decoded"] == counts["damaged"]


def test_a_record_refuses_damage_at_every_byte(made, files, media):
    clip = media.video(files / "a.mp4", FRAMES)
    record = pack("key", clip)
    same_clip(unpack("key", record), clip)
    rng = np.random.default_rng(0)
    for at in [*range(12), *rng.integers(0, len(record), 100)]:
        damaged = bytearray(record)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match="checksum"):
            unpack("key", bytes(damaged))
    for length in (0, 3, 8, 100, len(record) - 1):
        with pytest.raises(ValueError, match=r"checksum|short"):
            unpack("key", record[:length])
    with pytest.raises(ValueError, match="another file"):
        unpack("other", record)


def test_a_truncated_shard_is_decoded_around_and_redone(copied, media):
    directory, root = copied
    (shard,) = directory.glob("*.arrayrecord")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    cached = CachedMedia(directory, media)
    same_clip(cached.video(root / "b.mp4", FRAMES), media.video(root / "b.mp4", FRAMES))
    assert cached.take_counts()["damaged"] == 1
    report = write_cache(items_of(root), directory, SETTINGS, processes=1)
    assert (report.written, report.kept) == (4, 0)
    fresh = CachedMedia(directory, media)
    fresh.video(root / "b.mp4", FRAMES)
    assert fresh.take_counts() == {"cached": 1}


def test_finished_shards_are_kept_and_unfinished_ones_redone(made, files, tmp_path):
    directory = tmp_path / "cache"
    shutil.copytree(made[0], directory)
    (directory / ".shard-00007.arrayrecord").write_bytes(b"half")
    (directory / "shard-00008.arrayrecord").write_bytes(b"no sidecar")
    (directory / "shard-00009.json").write_text("{")
    report = write_cache(items_of(files), directory, SETTINGS, processes=1)
    assert (report.kept, report.written) == (4, 0)
    names = {path.name for path in directory.iterdir()}
    assert names == {".lock", "shard-00000.arrayrecord", "shard-00000.json"}


def test_a_damaged_sidecar_is_named(copied, media):
    directory, _ = copied
    (directory / "shard-00000.json").write_text('{"entries": [{}]')
    with pytest.raises(UserError, match=r"shard-00000\.json: damaged"):
        CachedMedia(directory, media)
    with pytest.raises(UserError, match="no such cache directory"):
        CachedMedia(directory / "none", media)


COMMAND = [sys.executable, "scripts/cache_media.py"]
REPOSITORY = Path(__file__).resolve().parents[2]


def arguments_for(source, out, *more) -> list[str]:
    given = ["--records", source.records.path, "--media-root", source.media_root, "--out", out, "--frames", 8]
    return [str(argument) for argument in [*given, "--frame-pixels", 56 * 56, *more]]


def run(*given) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments_for(*given)], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source"), images=40, videos=40, bad_share=0.1, files=8)


def test_killed_command_goes_on_where_it_was(source, tmp_path):
    out = tmp_path / "cache"
    command = [*COMMAND, *arguments_for(source, out, "--processes", 2)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = run(source, out, "--processes", "2")
    assert first.returncode == 0, first.stderr
    assert "cannot be used" in first.stdout
    again = run(source, out)
    assert " 0 files decoded, 14 kept" in again.stdout
    reasons = [json.loads(line)["reason"] for line in (out / "failures.jsonl").read_text().splitlines()]
    assert {"path", "undecodable"} == set(reasons)


def test_command_refuses_politely(source, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for more, code, message in [
        (["--out", tmp_path / "taken"], 2, "is no cache"),
        (["--frames", "1"], 2, "--frames"),
        (["--media-root", tmp_path / "none"], 2, "no such directory"),
        (["--records", tmp_path / "none.json"], 1, "none.json"),
    ]:
        answer = run(source, tmp_path / "new", *more)
        assert answer.returncode == code
        assert message in answer.stderr.splitlines()[-1]
        assert "Traceback" not in answer.stderr
    assert not (tmp_path / "new").exists()


def test_the_pipeline_uses_it_and_says_so(source, tmp_path, tiny_tokenizer):
    items, failures = media_items(source.records, source.media_root)
    assert failures
    write_cache(items, tmp_path / "cache", SETTINGS, processes=1)

    def batches(media):
        pipeline = Pipeline([source], encoder_of(tiny_tokenizer), layout_of(tiny_tokenizer), media, batching(4))
        with pipeline.batches() as stream:
            return [next(stream) for _ in range(6)]

    with MediaReader() as reader:
        decoded, cached = batches(reader), batches(CachedMedia(tmp_path / "cache", reader))
    for left, right in zip(decoded, cached, strict=True):
        assert left.rows == right.rows
        assert left.refusals == right.refusals
        for name, array in left.ordered.items():
            np.testing.assert_array_equal(array, right.ordered[name])
        assert left.media == {}
        assert right.media["cached"] == 4
