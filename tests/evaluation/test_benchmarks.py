"""Benchmarks are recognised and grouped by what their files hold; the paper's table is complete."""

import json

import pytest
from commands import load_command

from vr1_jax.evaluation import benchmarks
from vr1_jax.evaluation.benchmarks import ALL, OTHER, family, recognise

evaluate = load_command("scripts/evaluate.py")


def test_by_file_name():
    for name, expected in (
        ("eval_vsibench", "VSI-Bench"),
        ("eval_videommmu", "VideoMMMU"),
        ("eval_mmvu", "MMVU"),
        ("MVBench", "MVBench"),
        ("tempcompass_16", "TempCompass"),
        ("eval_videomme", "VideoMME"),
        ("Video-MME", "VideoMME"),
        ("train", ""),
    ):
        assert recognise(name, []).name == expected


def test_by_media_paths():
    def paths(*names):
        return [{"path": name} for name in names]

    assert recognise("mine", paths("./Evaluation/MVBench/clevrer/1.mp4")).name == "MVBench"
    assert recognise("mine", paths("/MMVU/1.mp4", "/MMVU/2.mp4", "x.mp4")).name == "MMVU"
    assert recognise("mine", paths("/MMVU/1.mp4", "x.mp4")) is OTHER
    assert recognise("mine", [{"path": None}, {}]) is OTHER


@pytest.mark.parametrize("name", ["vsibench", "videommmu", "mmvu", "mvbench", "videomme"])
def test_published_files(shared_data, name):
    """Every record of every file has a task, and each file is known by its name and by its paths alike."""
    for folder, file in (("video_r1_eval", f"eval_{name}.json"), ("easyvideor1_eval", f"{name}.json")):
        path = shared_data / "annotations" / folder / file
        if not path.is_file():
            continue
        records = json.loads(path.read_text())
        found = recognise(path.stem, records)
        assert found.mark == name
        if folder == "video_r1_eval":
            assert recognise("other", records) is found
            groups = {next(iter(found.groupings.values()))(record) for record in records}
            assert None not in groups
            assert 4 <= len(groups) <= 40


def test_tasks():
    by_name = {benchmark.name: benchmark.groupings for benchmark in ALL}
    record = {"path": "./Evaluation/VideoMMMU/test_Art_History_3.mp4", "data_source": "https://x.y/z"}
    assert by_name["VideoMMMU"]["subject"](record) == "Art_History"
    record = {"path": "./Evaluation/MVBench/perception/videos/video_1.mp4", "original_question_type": ""}
    assert by_name["MVBench"]["videos from"](record) == "perception"
    assert by_name["MVBench"]["videos from"]({"path": "1.mp4"}) is None
    assert by_name["VideoMME"]["duration"]({"duration": "short"}) == "short"
    assert OTHER.groupings["task"]({"data_source": "built-in/count"}) == "built-in/count"
    assert OTHER.groupings["task"]({"data_source": "https://x.y/z"}) is None
    assert family("object_rel_direction_hard") == family("object_rel_direction_easy") == "object_rel_direction"
    assert family("route_planning") == "route_planning"


def test_the_papers_table():
    assert {benchmark.name for benchmark in benchmarks.ALL} == set(evaluate.BENCHMARKS)
    for _, _, _, scores in evaluate.ROWS:
        assert len(scores) == len(evaluate.BENCHMARKS)
        assert all(score is None or 20 < score < 80 for score in scores)
    ours = {(model, frames): scores for model, frames, table, scores in evaluate.ROWS if table == 1}
    assert len(ours) == 10
    place = evaluate.BENCHMARKS.index("VSI-Bench")
    assert ours["Video-R1-7B", 64][place] == 37.1  # quoted in the abstract
    assert ours["Video-R1-7B", 32][place] == 35.8  # quoted in the first version's abstract
    assert len(evaluate.published_lines("MVBench", 16)) == 1 + len(evaluate.ROWS) - 1  # a title; none of GPT-4o
    assert evaluate.published_lines("mine", 16) == []
