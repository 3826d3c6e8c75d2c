"""The paper's six benchmarks: how their files are told apart, and what their questions are grouped by.

Annotation files carry no name, so a benchmark is recognised by the file's own name (`eval_mvbench.json`) or,
failing that, by the folders of its media. Anything else is evaluated too, only without the paper's figures.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

Record = Mapping[str, Any]
Grouping = Callable[[Record], str | None]

# Folders that say nothing about the question.
PLAIN_FOLDERS = {"evaluation", "video", "videos", "data", "media"}
DIFFICULTY = re.compile(r"_(easy|medium|hard)$")
VIDEOMMMU_FILE = re.compile(r"[a-z]+_(.+)_\d+")


def named(field_name: str) -> Grouping:
    def group(record: Record) -> str | None:
        value = record.get(field_name)
        return value if isinstance(value, str) and value else None

    return group


def folder(record: Record) -> str | None:
    """The first folder of the media path that is neither plain nor a benchmark's name."""
    path = record.get("path")
    folders = PurePosixPath(path.replace("\\", "/")).parts[:-1] if isinstance(path, str) else ()
    for part in folders:
        if part not in (".", "/") and part.lower() not in PLAIN_FOLDERS and _benchmark_named_in(part) is None:
            return part
    return None


def subject(record: Record) -> str | None:
    """VideoMMMU names its files test_Geography_14.mp4 or new_Art_1.mp4."""
    found = VIDEOMMMU_FILE.fullmatch(PurePosixPath(str(record.get("path"))).stem)
    return found[1] if found else None


def kind_of_question(record: Record) -> str | None:
    source = named("data_source")(record)
    if source is not None and "://" in source:
        source = None
    return named("original_question_type")(record) or named("task_type")(record) or source


@dataclass(frozen=True)
class Benchmark:
    """`mark` is its name in lower-case letters and digits; `groupings` besides the type of the problem.

    VSI-Bench's own figure is the mean of its tasks.
    """

    name: str
    mark: str
    groupings: Mapping[str, Grouping] = field(default_factory=lambda: {"task": kind_of_question})
    task_mean: bool = False


ALL = (
    Benchmark("VSI-Bench", "vsibench", task_mean=True),
    Benchmark("VideoMMMU", "videommmu", {"subject": subject}),
    Benchmark("MMVU", "mmvu", {"subject": folder}),
    Benchmark("MVBench", "mvbench", {"videos from": folder}),
    Benchmark("TempCompass", "tempcompass"),
    Benchmark("VideoMME", "videomme", {"task": kind_of_question, "duration": named("duration")}),
)
OTHER = Benchmark("", "")


def recognise(file_name: str, records: Iterable[Record]) -> Benchmark:
    """By the file's name, else by what most media paths and sources say; OTHER if nothing does."""
    by_name = _benchmark_named_in(file_name)
    if by_name is not None:
        return by_name
    votes: Counter[str] = Counter()
    total = 0
    by_mark = {benchmark.mark: benchmark for benchmark in ALL}
    for record in records:
        total += 1
        found = _benchmark_named_in(f"{record.get('path')} {record.get('data_source')}")
        if found is not None:
            votes[found.mark] += 1
    (mark, count), *_ = [*votes.most_common(1), ("", 0)]
    return by_mark[mark] if 2 * count > total else OTHER


def family(task: str) -> str:
    """VSI-Bench's three difficulties of one task count as one task in its mean."""
    return DIFFICULTY.sub("", task)


def _benchmark_named_in(text: str) -> Benchmark | None:
    letters = re.sub(r"[^a-z0-9]", "", text.lower())
    return next((benchmark for benchmark in ALL if benchmark.mark in letters), None)
