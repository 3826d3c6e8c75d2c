"""The parser accepts or refuses by rule, names the place, and never falls over."""

import os
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vr1_jax.data.records import KNOWN_FIELDS, RecordError, check_path, parse_record, resolve_media

GOOD = {
    "problem_id": 2,
    "problem": "Which way?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. left", "B. right"],
    "process": "<think>It moves left.</think>",
    "solution": "<answer>A</answer>",
    "path": "./videos/2.mp4",
    "data_source": "somewhere",
}


def parse(**changes):
    record = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return parse_record(record, index=7, file="train.json")


def test_a_good_record():
    sample = parse(original_question_type="object_counting")
    assert (sample.index, sample.problem_id, sample.problem) == (7, 2, "Which way?")
    assert sample.options == ("A. left", "B. right")
    assert (sample.path, sample.answer, sample.process) == (
        "videos/2.mp4",
        "A",
        "<think>It moves left.</think>",
    )
    assert sample.extras == {"original_question_type": "object_counting"}
    assert sample.is_video


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"options": None, "problem_type": "regression"}, "options", ()),
        ({"options": ..., "problem_type": "OCR"}, "options", ()),
        ({"problem_id": 76.0}, "problem_id", 76),
        ({"problem_id": "ovo_8"}, "problem_id", "ovo_8"),
        ({"problem_id": ...}, "problem_id", None),
        ({"solution": "G"}, "solution", "<answer>G</answer>"),
        ({"solution": "<answer>G.</answer>"}, "answer", "G."),
        ({"solution": "<answer> two\nlines </answer>"}, "answer", "two\nlines"),
        ({"process": ""}, "process", None),
        ({"process": None}, "process", None),
        ({"process": "It is so."}, "process", "<think>It is so.</think>"),
        ({"data_source": None}, "data_source", ""),
        ({}, "pass_rate", None),
        ({"pass_rate": None}, "pass_rate", None),
        ({"pass_rate": 1}, "pass_rate", 1),
        ({"pass_rate": 0.25}, "pass_rate", 0.25),
        ({"data_type": "frame", "path": "tvqa/clip"}, "data_type", "frames"),
        ({"data_type": "text", "path": ...}, "path", None),
        ({"path": "/MMVU/videos/1.mp4"}, "path", "MMVU/videos/1.mp4"),
        ({"path": ".\\MMVU\\videos\\1.mp4"}, "path", "MMVU/videos/1.mp4"),
    ],
)
def test_accepted_by_rule(changes, field, value):
    assert getattr(parse(**changes), field) == value


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"problem": None}, "problem", "null"),
        ({"problem": " \n"}, "problem", "empty"),
        ({"problem": ...}, "problem", "missing"),
        ({"problem": "half \ud83d pair"}, "problem", "surrogate"),
        ({"problem_id": 76.5}, "problem_id", "76.5"),
        ({"problem_id": float("nan")}, "problem_id", "nan"),
        ({"problem_id": True}, "problem_id", "True"),
        ({"data_type": "audio"}, "data_type", "audio"),
        ({"problem_type": "open-ended"}, "problem_type", "open-ended"),
        ({"options": []}, "options", "multiple choice"),
        ({"options": "A. x"}, "options", "not a list"),
        ({"options": [1, 2]}, "options", "number"),
        ({"solution": None}, "solution", "null"),
        ({"solution": 3}, "solution", "number"),
        ({"solution": "<answer>A"}, "solution", "without the other"),
        ({"solution": "</answer>A<answer>"}, "solution", "without the other"),
        ({"solution": "<answer> </answer>"}, "solution", "nothing between"),
        ({"process": "<think>cut"}, "process", "without the other"),
        ({"pass_rate": "0.5"}, "pass_rate", "not a number in 0..1"),
        ({"pass_rate": True}, "pass_rate", "True"),
        ({"pass_rate": 1.5}, "pass_rate", "1.5"),
        ({"pass_rate": float("nan")}, "pass_rate", "nan"),
        ({"path": ...}, "path", "missing"),
        ({"path": ["a.mp4"]}, "path", "list"),
        ({"data_type": "text"}, "path", "data_type is text"),
    ],
)
def test_refused_by_rule(changes, field, reason):
    with pytest.raises(RecordError, match=reason) as caught:
        parse(**changes)
    assert str(caught.value).startswith(f"train.json: record 7: field '{field}': ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
damage = st.dictionaries(st.sampled_from(sorted(KNOWN_FIELDS)), json_like, max_size=4)


@settings(deadline=None, max_examples=100)
@given(damage | json_like)
@example({"path": "a\ud800"})
def test_garbage_is_refused_never_a_crash(damage):
    record = GOOD | damage if isinstance(damage, dict) else damage
    try:
        sample = parse_record(record, index=0)
    except RecordError:
        return
    assert sample.answer in sample.solution
    hash(sample)


ATTACKS = [
    "../secret.mp4",
    "videos/../../secret.mp4",
    "..\\secret.mp4",
    "videos\\..\\..\\secret.mp4",
    "/../secret.mp4",
    "//host/share/a.mp4",
    "\\\\host\\share\\a.mp4",
    "C:\\secret.mp4",
    "c:/secret.mp4",
    "http://host/a.mp4",
    "HTTPS://host/a.mp4",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "data:video/mp4;base64,AAAA",
    "s3://bucket/a.mp4",
    "videos/a.mp4\0.png",
    ".",
    "/",
]


@pytest.mark.parametrize("path", ATTACKS)
def test_a_path_that_is_no_place_under_the_root(path):
    with pytest.raises(RecordError, match="path"):
        parse(path=path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    root = tmp_path / "media"
    (root / "videos").mkdir(parents=True)
    (root / "videos" / "a.mp4").write_bytes(b"a")
    (root / "videos" / "link.mp4").symlink_to("a.mp4")
    (root / "videos" / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "outside").symlink_to(tmp_path)
    (root / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(root / "pipe.mp4")
    return root


@pytest.mark.parametrize(
    "path", ["videos/a.mp4", "./videos//a.mp4", "/videos/a.mp4", "videos\\a.mp4", "videos/link.mp4"]
)
def test_media_inside_the_root(root, path):
    assert resolve_media(root, path) == (root / "videos" / "a.mp4").resolve()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("videos/out.mp4", "symlink"),
        ("outside/secret.mp4", "symlink"),
        ("outside/media/../secret.mp4", "climbs"),
        ("loop.mp4", "symbolic link"),
        ("pipe.mp4", "regular file"),
        ("videos", "regular file"),
        ("videos/missing.mp4", "No such file"),
        ("videos/a.mp4/b.mp4", "Not a directory"),
        ("x" * 5000, "too long"),
        ("/etc/passwd", "No such file"),
    ],
)
def test_media_outside_or_unreadable(root, path, reason):
    with pytest.raises(RecordError, match=reason):
        resolve_media(root, path)


def test_an_absolute_path_counts_from_the_root_even_when_it_exists(root):
    with pytest.raises(RecordError, match="No such file"):
        resolve_media(root, str(root / "videos" / "a.mp4"))


def test_frame_folders_and_the_sample_named(root):
    assert resolve_media(root, "videos", folder=True) == (root / "videos").resolve()
    with pytest.raises(RecordError, match="folder of frames"):
        resolve_media(root, "videos/a.mp4", folder=True)
    with pytest.raises(RecordError, match=r"train\.json: record 7: field 'path'.*symlink"):
        parse(path="videos/out.mp4").media(root)
    with pytest.raises(RecordError, match="media root"):
        resolve_media(root / "nowhere", "a.mp4")


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(["..", ".", "", "/", "\\", "a", "~", "%2e%2e", "...", "C:", "\0", " "])).map("/".join)
)
def test_a_checked_path_stays_below(path):
    try:
        checked = check_path(path)
    except RecordError:
        return
    assert checked == check_path(checked)
    assert not os.path.isabs(checked)
    assert not os.path.relpath(os.path.normpath("/root/" + checked), "/root").startswith("../")
