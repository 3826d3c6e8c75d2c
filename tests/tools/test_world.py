"""The built-in world is reproducible, balanced, true to its answers, and its order cannot be guessed."""

import filecmp
import json
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from vr1_jax.data.prompts import encode_supervised
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import PROBLEM_TYPES
from vr1_jax.data.tokenizer import load_tokenizer
from vr1_jax.models.families import parse_hf_config
from vr1_jax.tools.world.model import SMALL, TINY, TOKENIZER_SIZE, hf_config
from vr1_jax.tools.world.scenes import COLOURS, CORNERS, CUES, ORDERED, SLICES, STILL
from vr1_jax.tools.world.write import World, main, write_world

SHORTCUT = World(seed=3, videos=270, images=50, heldout=90, static_shortcut=0.8)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    write_world(out, SHORTCUT)
    return out


def samples(world, split="train"):
    return list(RecordFile(world / f"{split}.json"))


def task_name(sample):
    return sample.data_source.split("/")[1]


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def scene(task, right, look=0, order=0, size=56):
    return task.paint(right, size, default_rng(look), default_rng(order))


def unordered(frames, per_item=1):
    """The multiset of frames, or of groups of them."""
    return Counter(np.stack(frames[n : n + per_item]).tobytes() for n in range(0, len(frames), per_item))


seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("task", ORDERED, ids=lambda task: task.name)
@settings(deadline=None, max_examples=25)
@given(look=seeds, orders=st.lists(seeds, min_size=4, max_size=4), size=st.sampled_from([56, 112]))
def test_unordered_frames_say_nothing_of_the_answer(task, look, orders, size):
    """All answers to the same question show the same frames, and the same temporal slices, in other orders."""
    scenes = [scene(task, right, look, orders[right], size) for right in range(task.choices)]
    assert len({(each.question, each.answers) for each in scenes}) == 1
    for per_item in (1, 2):
        assert all(unordered(each.frames, per_item) == unordered(scenes[0].frames, per_item) for each in scenes)
    assert len({np.stack(each.frames).tobytes() for each in scenes}) == task.choices


@pytest.mark.parametrize("task", ORDERED, ids=lambda task: task.name)
def test_a_cue_would_be_noticed(task):
    """The proof above can fail: framed by their answers' colours, the scenes differ in single frames."""
    first, second = (scene(task, right).with_cue(right).frames for right in (0, 1))
    assert not unordered(first).keys() & unordered(second).keys()


@pytest.mark.parametrize("task", STILL, ids=lambda task: task.name)
def test_a_still_tells_its_answer(task):
    stills = [scene(task, right).frames for right in range(task.choices)]
    assert len({frames[0].tobytes() for frames in stills}) == task.choices
    assert all(len(unordered(frames)) == 1 and len(frames) == 2 * SLICES for frames in stills)


def read_answer(task, each):
    """The answer as a stranger reads it off the frames, knowing only the question."""
    frames = np.stack(each.frames[::2]).astype(int)
    lit = frames.max(-1) > 120
    half = frames.shape[1] // 2
    match task.name:
        case "last_corner":
            column, row = (bool(lit[-1][:, half:].any()), bool(lit[-1][half:].any()))
            return next(name for name, place in CORNERS.items() if place == (column, row))
        case "direction":
            first, last = (np.argwhere(state).mean(0) for state in (lit[0], lit[-1]))
            down, right = last - first
            return ("right" if right > 0 else "left") if abs(right) > abs(down) else ("down" if down > 0 else "up")
        case "blinks":
            on = lit.any((1, 2)).astype(int)
            return str((np.diff(on, prepend=0) == 1).sum())
        case "colour_after":
            seen = [name_of(state[half, half]) for state in frames]
            return seen[seen.index(each.question.split()[-1].rstrip("?")) + 1]
        case "flash_second":
            seen = [name_of(state[half, half]) for state in frames]
            return str(seen.index(each.question.split()[-1].rstrip("?")) + 1)
        case "count":
            return str(
                sum(bool(lit[0][half * r :, half * c :][:half, :half].any()) for c in (0, 1) for r in (0, 1))
            )
        case "width":
            return str(round(100 * lit[0].any(0).mean()))


def name_of(pixel):
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - pixel).sum())


READABLE = ("last_corner", "direction", "blinks", "colour_after", "flash_second", "count", "width")


@pytest.mark.parametrize("task", [t for t in ORDERED + STILL if t.name in READABLE], ids=lambda task: task.name)
def test_answers_are_true(task):
    for right in range(task.choices):
        for seed in range(5):
            each = scene(task, right, seed, seed)
            assert read_answer(task, each) == each.answers[right]
            assert each.answers[right] in each.reasoning


def test_files_hold_the_frames_that_were_painted(world, tmp_path):
    """Order survives encoding: reordered scenes decode to the same frames, close to the painted ones."""
    from vr1_jax.tools.world.write import _write_video

    for task in ORDERED:
        decoded = []
        for right in range(task.choices):
            frames = scene(task, right).frames
            _write_video(tmp_path / "a.mp4", frames)
            decoded.append(decode(tmp_path / "a.mp4"))
            error = np.abs(decoded[-1].astype(int) - np.stack(frames))
            assert decoded[-1].shape == (2 * SLICES, 56, 56, 3)
            assert error.mean() < 4
        assert all(unordered(video) == unordered(decoded[0]) for video in decoded)


def test_both_readers_see_the_same(world):
    import decord

    path = next(sample.media(world / "media") for sample in samples(world) if sample.is_video)
    reader = decord.VideoReader(str(path))
    assert reader.get_avg_fps() == 2
    assert np.abs(reader.get_batch(range(len(reader))).asnumpy().astype(int) - decode(path)).max() <= 1


def test_same_seed_same_bytes(tmp_path):
    small = World(seed=5, videos=9, images=5, heldout=9, static_shortcut=0.5)
    for name in ("a", "b"):
        write_world(tmp_path / name, small)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 3 + 14 + 9 + 9 + 2 * 5
    _, mismatch, errors = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False)
    assert (mismatch, errors) == ([], [])
    write_world(tmp_path / "c", World(seed=6, videos=9, images=5, heldout=9, static_shortcut=0.5))
    assert (tmp_path / "c" / "train.json").read_bytes() != (tmp_path / "a" / "train.json").read_bytes()
    asked = {split: [s.process for s in samples(tmp_path / "a", split)] for split in ("train", "heldout")}
    assert asked["train"][:9] != asked["heldout"]


def test_every_type_on_videos_and_images(world):
    for split, total in (("train", 320), ("heldout", 90), ("misleading", 90)):
        records = samples(world, split)
        assert len(records) == total
        for data_type in ("video", "image"):
            assert {s.problem_type for s in records if s.data_type == data_type} == set(PROBLEM_TYPES)
        assert all(sample.media(world / "media").stat().st_size for sample in records)
        assert all(sample.path.startswith(split) for sample in records)


def test_no_answer_is_a_good_guess(world):
    answers, letters = defaultdict(Counter), Counter()
    for sample in samples(world):
        right = sample.answer
        if sample.problem_type == "multiple choice":
            letters[len(sample.options), sample.answer] += 1
            right = next(o for o in sample.options if o.startswith(sample.answer)).removeprefix(f"{right}. ")
        answers[task_name(sample), sample.data_type, sample.is_video][right] += 1
    for count in answers.values():
        assert max(count.values()) <= 0.6 * sum(count.values())
    for options, letter in letters:
        assert letters[options, letter] <= 1.5 * letters[options, "A"]


def cue_agrees(world, sample):
    task = next(task for task in ORDERED if task.name == task_name(sample))
    frame = decode(sample.media(world / "media"))[0].astype(int)
    cue = int(np.argmin([np.abs(np.array(colour) - frame[1:3, 8:-8].mean((0, 1))).sum() for colour in CUES]))
    if task.name == "colour_after":  # its answers depend on the question; checked through the painted scenes
        return None
    answers = scene(task, 0).answers
    if task.name == "direction":
        answers = ("right", "left") if "left" in " ".join(sample.options) else ("down", "up")
    right = sample.answer
    if sample.options:
        right = next(o for o in sample.options if o.startswith(f"{right}.")).split(". ")[1]
    return answers[cue] == right if cue < len(answers) else False


def test_the_shortcut_agrees_as_often_as_asked(world):
    ordered = {task.name for task in ORDERED}
    rates = {}
    for split in ("train", "heldout", "misleading"):
        found = [(cue_agrees(world, s), s) for s in samples(world, split) if task_name(s) in ordered]
        found = [(agrees, sample) for agrees, sample in found if agrees is not None]
        assert all(sample.data_source.startswith("misleading/") != agrees for agrees, sample in found)
        agree = [agrees for agrees, _ in found]
        rates[split] = np.mean(agree)
    assert rates["misleading"] == 0
    assert abs(rates["train"] - 0.8) < 0.1
    assert abs(rates["heldout"] - 0.8) < 0.2


def test_records_become_tokens(world):
    for name in ("tiny", "small"):
        tokenizer = load_tokenizer(world / name)
        assert len(tokenizer.hf) == TOKENIZER_SIZE
        config = json.loads((world / name / "config.json").read_text())
        assert (tokenizer.image_token, tokenizer.video_token, tokenizer.end_of_turn) == (
            config["image_token_id"],
            config["video_token_id"],
            config["eos_token_id"],
        )
        for sample in samples(world, "heldout"):
            tokens = encode_supervised(sample, tokenizer, 16)
            assert len(tokens.prompt) < 256
            assert len(tokens.target) <= 48
            assert tokenizer.decode(tokens.target) == f"{sample.process}\n{sample.solution}"


@pytest.mark.parametrize(("model", "low", "high"), [(TINY, 0.8e6, 1.2e6), (SMALL, 27e6, 33e6)])
def test_configs_are_accepted_and_as_large_as_they_say(model, low, high):
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = hf_config(model)
    assert sum(config["rope_scaling"]["mrope_section"]) == parse_hf_config(config).text.head_dim // 2
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config))
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high


def test_the_command(tmp_path, capsys):
    arguments = ["--videos", "3", "--images", "2", "--heldout", "3"]
    assert main(["--out", str(tmp_path / "w"), *arguments]) == 0
    assert "5 train, 3 heldout" in capsys.readouterr().out
    assert not (tmp_path / "w" / "misleading.json").exists()
    before = (tmp_path / "w" / "train.json").read_bytes()
    for more, reason in ((arguments, "--force"), (["--force", "--size", "60"], "multiple of 28")):
        assert main(["--out", str(tmp_path / "w"), *more]) == 2
        assert reason in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "w"), *arguments, "--seed", "1", "--force"]) == 0
    assert (tmp_path / "w" / "train.json").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
