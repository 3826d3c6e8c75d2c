import json

import pytest

from vr1_jax.data.quarantine import Quarantine, QuarantineError, Refusal


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
    with pytest.raises(QuarantineError, match=r"quarantine\.jsonl: line 1"):
        Quarantine(path)


def test_too_many_bad_records_end_the_run_after_a_minimum(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, max_share=0.1, minimum=50)
    quarantine.add([refusal(n) for n in range(10)], served=30)
    with pytest.raises(
        QuarantineError, match=r"10 of 50 records .* 10\.0%: undecodable 10; see .*quarantine\.jsonl"
    ):
        quarantine.add([], served=40)
    Quarantine(path, max_share=0.1, minimum=50).add([], served=90)  # exactly the limit


def test_unreadable_records_are_counted_against_all_records():
    quarantine = Quarantine(max_share=0.1, minimum=50)
    quarantine.start([refusal(n, "record") for n in range(90)], records=1000)
    quarantine.add([refusal(500)], served=100)  # 1 of 101, not 91 of 191
    with pytest.raises(QuarantineError, match="101 of 1000"):
        Quarantine(max_share=0.1, minimum=50).start([refusal(n, "record") for n in range(101)], records=1000)
