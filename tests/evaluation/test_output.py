"""Outputs are whole or absent; work read ahead keeps its order."""

import itertools
import threading

import pytest

from vr1_jax.data.ahead import read_ahead
from vr1_jax.errors import UsageError
from vr1_jax.files import check_output_file, whole_file


def test_whole_file(tmp_path):
    out = tmp_path / "deep" / "out.txt"
    with whole_file(out) as file:
        file.write("all")
        assert not out.exists()
    assert out.read_text() == "all"

    def interrupted():
        with whole_file(out) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.read_text() == "all"
    assert list(out.parent.iterdir()) == [out]


def test_check_output(tmp_path):
    there = tmp_path / "there"
    there.write_text("")
    check_output_file(tmp_path / "new", force=False)
    check_output_file(there, force=True)
    for out, force, inputs in (
        (there, False, ()),
        (tmp_path, True, ()),
        (there, True, (tmp_path / "." / "there",)),
    ):
        with pytest.raises(UsageError):
            check_output_file(out, force=force, inputs=inputs)


def test_read_ahead_keeps_order_and_its_distance():
    taken = itertools.count()
    threads = set()

    def items():
        for number in range(50):
            next(taken)
            yield number

    def work(number, reader):
        threads.add(threading.get_ident())
        return number * number

    results = read_ahead(work, items(), unit=28, depth=5)
    assert next(results) == 0
    assert next(taken) == 6  # the one delivered and five more
    assert list(results) == [number * number for number in range(1, 50)]
    assert threading.get_ident() not in threads


def test_read_ahead_passes_errors_on():
    def work(number, reader):
        return 1 // number

    results = read_ahead(work, iter([1, 0, 1]), unit=28)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
