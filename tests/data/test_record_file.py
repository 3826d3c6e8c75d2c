"""Indexing finds the records that a whole-file parse finds, and names the byte where a file is damaged."""

import json
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError

RECORD = {
    "problem_id": 1,
    "problem": 'Say "hi" \\ {ночь} 日本 🎬 ]',
    "data_type": "image",
    "problem_type": "OCR",
    "options": [],
    "solution": "<answer>hi</answer>",
    "path": "a.png",
}
NESTED = RECORD | {"meta": {"boxes": {"0": [{"x": "}"}]}}}


def write(path, records, *, lines=False, bom=False, newline="\n", **dump):
    dumped = [json.dumps(record, **dump) for record in records]
    text = newline.join(dumped) + newline if lines else "[" + f",{newline}".join(dumped) + "]"
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    return path


def outcome(action, argument):
    """What the action returns, and the one kind of error that it may raise."""
    try:
        return action(argument), None
    except RecordError as error:
        return None, error


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("bom", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_spellings_of_the_same_records(tmp_path, lines, bom, newline, ascii_only):
    records = [RECORD, NESTED, RECORD | {"problem": "plain"}]
    file = RecordFile(
        write(tmp_path / "r.json", records, lines=lines, bom=bom, newline=newline, ensure_ascii=ascii_only)
    )
    assert [file.raw(i) for i in range(3)] == records
    assert [sample.problem for sample in file] == [record["problem"] for record in records]
    assert file[-1] == file[2]
    with pytest.raises(IndexError):
        file[3]


def test_indented_list_empty_list_and_blank_lines(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("\n" + json.dumps([RECORD, NESTED], indent=4) + "\n\n")
    assert len(RecordFile(path)) == 2
    path.write_text(" [ ] \n")
    assert len(RecordFile(path)) == 0
    path.write_text("\n" + json.dumps(RECORD) + "\n\n  " + json.dumps(NESTED))  # no final newline
    assert RecordFile(path).raw(1) == NESTED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='"\\{}[],:\n é🎬', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"{\\', max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.dictionaries(st.text('"}\\ a', max_size=3), json_values, max_size=3), max_size=4),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_index_equals_a_whole_parse(tmp_path_factory, records, ascii_only, indent):
    path = tmp_path_factory.mktemp("r") / "r.json"
    path.write_text(json.dumps(records, ensure_ascii=ascii_only, indent=indent))
    file = RecordFile(path)
    assert [file.raw(i) for i in range(len(file))] == records


@settings(deadline=None, max_examples=100)
@given(st.data(), st.booleans())
def test_damage_gives_a_record_error_or_a_smaller_file(tmp_path_factory, data, lines):
    path = write(
        tmp_path_factory.mktemp("r") / "r.json", [RECORD, NESTED, RECORD], lines=lines, ensure_ascii=False
    )
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    file, error = outcome(RecordFile, path)
    if error:
        assert str(path) in str(error)
        return
    for index in range(len(file)):
        _, error = outcome(file.__getitem__, index)
        assert error is None or (error.file, error.index) == (str(path), index)


def test_every_truncation_of_a_list_is_noticed(tmp_path):
    path = write(tmp_path / "r.json", [RECORD, NESTED])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(RecordError, match=r"empty|byte \d+ \(line \d\)"):
            RecordFile(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08\x00", r"byte 0 \(line 1\): starts neither"),
        (json.dumps([RECORD]).encode("utf-16"), "starts neither"),
        (b"problem,solution\n1,2\n", "starts neither"),
        (b"\n\n[1, 2]", r"byte 3 \(line 3\): record 0 is not an object"),
        (b'[{"a": 1} {"b": 2}]', r"byte 10 .*expected ',' or '\]' after record 0"),
        (b'[{"a": 1}]x', r"byte 10 .*follows"),
        (b'[{"a": 1},]', r"byte 10 .*record 1 is not an object"),
        (b'[{"a": 1},\n{"b": "', r"byte 11 \(line 2\): record 1 is not closed"),
        (b'{"a": 1}\n{"b": 2', r"byte 9 \(line 2\): the line is not one whole JSON object"),
        (b'{\n"a": 1\n}', r"line 1\): the line is not one whole"),
    ],
)
def test_what_is_wrong_and_where(tmp_path, content, reason):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=reason):
        RecordFile(path)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"problem": "é", "x": tru}'.encode(), r"record 1: is not JSON at byte 33"),
        (b'{"problem": "\xff"}', r"record 1: is not UTF-8 at byte 23"),
        (b'{"problem_id": ' + b"1" * 5000 + b"}", "cannot be decoded"),
        (b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "cannot be decoded"),
        (b'{"problem": "a"}', "field 'data_type': is missing"),
    ],
)
def test_a_bad_record_costs_only_itself(tmp_path, record, reason):
    path = tmp_path / "r.json"
    good = json.dumps(RECORD).encode()
    path.write_bytes(b'{"a": 1}\n\n' + record + b"\n" + good)
    file = RecordFile(path)
    with pytest.raises(RecordError, match=reason):
        file[1]
    assert file[2].problem == RECORD["problem"]


def test_missing_file_and_changed_file(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(RecordError, match=r"r\.json: No such file"):
        RecordFile(path)
    file = RecordFile(write(path, [RECORD] * 3))
    write(path, [RECORD])
    with pytest.raises(RecordError, match="changed"):
        file[2]


def test_workers_and_threads_read_the_same(tmp_path):
    records = [RECORD | {"problem": str(i)} for i in range(200)]
    file = RecordFile(write(tmp_path / "r.json", records, lines=True))
    assert file[5].problem == "5"
    copy = pickle.loads(pickle.dumps(file))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: copy[i].problem, range(200))) == [str(i) for i in range(200)]


EXPECTED = {
    "easyvideor1_eval": {
        "accepted": 3456,
        "problem_type": 200 + 110 + 33 + 120 + 121 + 120,
        "problem": 60,
    },
    "video_r1_eval": {"accepted": 1000},
    "video_r1_train": {"accepted": 1, "path": 3},
    "train_like": {"accepted": 161, "problem": 39},
    "other_formats": {"data_type": 60, "problem": 103},
}


@pytest.mark.parametrize("folder", EXPECTED)
def test_published_files(shared_data, folder):
    counts = Counter()
    for path in sorted((shared_data / "annotations" / folder).iterdir()):
        file = RecordFile(path)
        for index in range(len(file)):
            try:
                counts["accepted"] += bool(file[index])
            except RecordError as error:
                counts[error.field] += 1
    assert counts == EXPECTED[folder]


def test_published_media_tree(shared_data):
    root = shared_data / "Video-R1-data"
    samples = [sample for path in sorted(root.glob("*.json")) for sample in RecordFile(path)]
    assert len(samples) == 4
    assert all(sample.media(root).is_file() for sample in samples)
