"""Whatever a kill leaves of a journal, a restart finds all that was finished and nothing else."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.errors import UserError
from vr1_jax.evaluation.journal import Journal

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = {"model": "a", "n": 4, "sizes": (1, 2)}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), JSON), min_size=1, max_size=8), st.data())
def test_any_cut_leaves_a_prefix(results, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        with Journal(path, SETTINGS) as journal:
            ends = []
            for result in results:
                journal.add([result])
                ends.append(path.stat().st_size)
            assert {n: journal[n] for n in journal} == dict(results)
        cut = data.draw(st.integers(0, path.stat().st_size))
        path.write_bytes(path.read_bytes()[:cut])
        whole = [result for result, end in zip(results, ends, strict=True) if end <= cut]
        with Journal(path, SETTINGS) as journal:
            assert {n: journal[n] for n in journal} == dict(whole)
            journal.add([(100, "after")])
        with Journal(path, SETTINGS) as journal:
            assert {n: journal[n] for n in journal} == dict(whole) | {100: "after"}
            assert (100 in journal, 101 in journal, len(journal)) == (True, False, len(dict(whole)) + 1)


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, SETTINGS) as journal:
        journal.add([(0, None)])
    before = path.read_bytes()
    with pytest.raises(UserError, match="made with n 4, not 8"):
        Journal(path, SETTINGS | {"n": 8})
    with pytest.raises(UserError, match="made with rule null, not 1"):
        Journal(path, SETTINGS | {"rule": 1})
    assert path.read_bytes() == before


def test_nothing_done_leaves_nothing(tmp_path):
    with Journal(tmp_path / "journal", SETTINGS):
        assert (tmp_path / "journal").exists()
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time(tmp_path):
    other = (
        "import sys; from pathlib import Path; from vr1_jax.evaluation.journal import Journal\n"
        "Journal(Path(sys.argv[1]), {})"
    )
    with Journal(tmp_path / "journal", {}):
        command = [sys.executable, "-c", other, tmp_path / "journal"]
        tried = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "another process is writing it" in tried.stderr


@pytest.mark.parametrize("line", [b"[1, 2]\n", b"{\n", b'{"number": "x"}\n', b"\xff\n", b"kept"])
def test_what_is_no_journal_is_left_alone(tmp_path, line):
    path = tmp_path / "journal"
    for content in (line, json.dumps({"settings": {}}).encode() + b"\n" + line + b"\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no result"):
            Journal(path, {})
        assert path.read_bytes() == content
