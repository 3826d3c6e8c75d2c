import json

import pytest

from vr1_jax.data.quarantine import Quarantine, Refusal
from vr1_jax.errors import UserError


def refusal(index: int, reason: str = "undecodable") -> Refusal:
    return Refusal("records.json", index, 100 + index, f"{index}.mp4", reason, f"{index}.mp4: not a video")


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_written_once_also_over_restarts(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    first = Quarantine(path)
    first.add([refusal(1), refusal(2), refusal(1)], served=8)
    first.add([refusal(2)], served=16)
    second = Quarantine(path)
    assert second.known == {("records.json", 1), ("records.json", 2)}
    second.add([refusal(1), refusal(3, "missing")], served=24)
    assert [line["index"] for line in lines(path)] == [1, 2, 3]
    assert lines(path)[0] == {
        "file": "records.json",
        "index": 1,
        "id": 101,
        "path": "1.mp4",
        "reason": "undecodable",
        "detail": "1.mp4: not a video",
    }
    assert second.counts == {"undecodable": 2, "missing": 1}


def test_a_line_cut_short_by_a_kill_is_written_anew(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).add([refusal(1), refusal(2)], served=1)
    path.write_bytes(path.read_bytes()[:-20])
    quarantine = Quarantine(path)
    assert len(quarantine) == 1
    quarantine.add([refusal(2)], served=1)
    assert [line["index"] for line in lines(path)] == [1, 2]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"file": 3\n')
    with pytest.raises(UserError, match=r"quarantine\.jsonl: line 1"):
        Quarantine(path)


def test_too_many_bad_records_end_the_run_after_a_minimum(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, max_share=0.1, minimum=50)
    quarantine.add([refusal(n) for n in range(10)], served=30)
    with pytest.raises(UserError, match=r"10 of 50 records .* 10\.0%: undecodable 10; see .*quarantine\.jsonl"):
        quarantine.add([], served=40)
    Quarantine(path, max_share=0.1, minimum=50).add([], served=90)  # exactly the limit


def test_unreadable_records_are_counted_against_all_records():
    quarantine = Quarantine(max_share=0.1, minimum=50)
    quarantine.start([refusal(n, "record") for n in range(90)], records=1000)
    quarantine.add([refusal(500)], served=100)  # 1 of 101, not 91 of 191
    with pytest.raises(UserError, match="101 of 1000"):
        Quarantine(max_share=0.1, minimum=50).start([refusal(n, "record") for n in range(101)], records=1000)


def test_all_processes_ever_had_are_remembered(tmp_path):
    """Three processes, then two, then one: nobody tries again what any of them has refused."""
    path = tmp_path / "quarantine.jsonl"
    three = [Quarantine(path, process=process, processes=3) for process in range(3)]
    for process, quarantine in enumerate(three):
        quarantine.start([refusal(100, "record")], records=1000)  # found by all, written once
        quarantine.add([refusal(process)], served=8)
    assert [line["index"] for line in lines(path)] == [100, 0]
    assert [line["index"] for line in lines(tmp_path / "quarantine.2.jsonl")] == [2]
    two = [Quarantine(path, process=process, processes=2) for process in range(2)]
    assert {quarantine.known for quarantine in two} == {frozenset(("records.json", n) for n in (0, 1, 2, 100))}
    two[1].add([refusal(2), refusal(7)], served=16)
    assert len(Quarantine(path)) == 5


def test_another_process_may_be_writing_its_last_line(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, process=1, processes=2).add([refusal(1), refusal(2)], served=1)
    other = tmp_path / "quarantine.1.jsonl"
    half = other.read_bytes()[:-20]
    other.write_bytes(half)
    assert len(Quarantine(path, process=0, processes=2)) == 1
    assert other.read_bytes() == half  # it is not ours to mend
    Quarantine(path, process=1, processes=2).add([refusal(2)], served=1)
    assert [line["index"] for line in lines(other)] == [1, 2]


def test_the_share_is_that_of_one_process_of_many(tmp_path):
    """Earlier refusals of all four stand against what one of them has had."""
    path = tmp_path / "quarantine.jsonl"
    for process in range(4):
        Quarantine(path, process=process, processes=4).add(
            [refusal(10 * process + n) for n in range(8)], served=92
        )
    Quarantine(path, 0.1, 50, process=3, processes=4).add([], served=92)  # 8 of 100
    with pytest.raises(UserError, match="11 of 103"):
        Quarantine(path, 0.1, 50, process=3, processes=4).add([refusal(n) for n in (50, 51, 52)], served=92)
