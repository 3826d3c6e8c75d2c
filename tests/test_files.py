"""Outputs appear whole or not at all."""

import errno
import os

import pytest

from vr1_jax.errors import UsageError
from vr1_jax.files import check_output_directory, check_space, out_of_space, whole_directory


@pytest.fixture
def opened(tmp_path):
    def open_output(force=False, replaceable=lambda path: True, bytes_needed=0, out="out", source="source"):
        check_output_directory(tmp_path / out, source=tmp_path / source, force=force, replaceable=replaceable)
        check_space(tmp_path / out, bytes_needed)
        return whole_directory(tmp_path / out)

    return open_output


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_appears_at_the_end_with_usual_permissions(opened, tmp_path):
    with opened(out="a/b/out") as directory:
        (directory / "file").write_text("x")
        assert not (tmp_path / "a/b/out").exists()
    assert (tmp_path / "a/b/out/file").read_text() == "x"
    assert names(tmp_path / "a/b") == ["out"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a/b/out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), RuntimeError()])
@pytest.mark.parametrize("exists", [True, False])
def test_nothing_remains_of_a_failure(opened, tmp_path, error, exists):
    if exists:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("x")
    before = names(tmp_path)

    def fail():
        with opened(force=True) as directory:
            (directory / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == before
    if exists:
        assert names(tmp_path / "out") == ["old"]


def test_failure_of_the_last_rename_keeps_the_old(opened, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    rename = type(tmp_path).rename

    def broken(self, target):
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "no")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", broken)
    with pytest.raises(OSError, match="no"), opened(force=True):
        pass
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_existing_needs_force(opened, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="--force"):
        opened()
    with opened(force=True) as directory:
        (directory / "new").touch()
    assert names(tmp_path / "out") == ["new"]


def test_force_never_replaces_what_it_does_not_know(opened, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="other files"):
        opened(force=True, replaceable=lambda path: False)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="other files"):
        opened(force=True, out="file")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match="other files"):
        opened(force=True, out="link")


@pytest.mark.parametrize("source", ["out", "out/inside", "out/../out"])
def test_force_never_replaces_the_source(opened, tmp_path, source):
    (tmp_path / "out" / "inside").mkdir(parents=True)
    with pytest.raises(UsageError, match="being converted"):
        opened(force=True, source=source)


def test_space_is_checked_first(opened, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"needs 1000000.1 GB, its disk has \d"):
        opened(bytes_needed=10**15)
    assert names(tmp_path) == []


def test_everything_is_flushed_before_it_appears(opened, tmp_path, monkeypatch):
    flushed, original = [], os.fsync

    def fsync(handle):
        assert not (tmp_path / "out").exists()
        flushed.append(os.readlink(f"/proc/self/fd/{handle}").rpartition("partial")[2])
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with opened() as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("x")
    assert {"", "/sub", "/sub/file"} <= set(flushed)


def test_out_of_space_is_recognised():
    assert out_of_space(OSError(errno.ENOSPC, "whatever"))
    assert out_of_space(ValueError("RESOURCE_EXHAUSTED: Failed to write: [No space left on device]"))
    assert not out_of_space(ValueError("another"))
    assert not out_of_space(OSError(errno.EACCES, "no"))
