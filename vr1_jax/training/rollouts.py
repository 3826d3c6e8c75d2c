"""Every answer of every step on disk, compactly: what the report browses."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.rl.experience import Judged, local_rows
from vr1_jax.types import Completion

ROLLOUTS = "rollouts"


def write_rollouts(
    run: Path,
    place: tuple[int, int, int],
    samples: list[Any],
    judged: Judged,
    groups: list[Completion],
) -> None:
    """One file for each `place`: step, attempt (of refilling) and process. A repeated step writes the same."""
    logps = [local_rows(group.logps) for group in groups]
    lengths = [local_rows(group.mask).sum(-1) for group in groups]
    answers = [judged.ordered, judged.shuffled]
    scores = [judged.scores, judged.shuffled_scores]
    prompts = []
    for row, sample in enumerate(samples):
        prompts.append(
            {
                "file": sample.file,
                "index": sample.index,
                "problem": sample.problem,
                "problem_type": sample.problem_type,
                "solution": sample.solution,
                "path": sample.path,
                "frames": sample.frames,
                "seconds_per_slice": sample.seconds_per_slice,
                "rewards": judged.signal.rewards[row].tolist(),
                "advantages": judged.signal.advantages[row].tolist(),
                "groups": [
                    {
                        "texts": texts[row],
                        "accuracy": score.accuracy[row].tolist(),
                        "format": score.format[row].tolist(),
                        "logps": [
                            _rounded(logps[n][row, g, : lengths[n][row, g]]) for g in range(len(texts[row]))
                        ],
                    }
                    for n, (texts, score) in enumerate(zip(answers, scores, strict=True))
                    if score is not None
                ],
            }
        )
    step, attempt, process = place
    path = run / ROLLOUTS / f"{step:06d}.{attempt}.{process}.json.gz"
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".partial")
    with gzip.open(aside, "wt", encoding="utf-8", compresslevel=5) as file:
        json.dump({"step": step, "attempt": attempt, "prompts": prompts}, file, ensure_ascii=False)
    os.replace(aside, path)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]
