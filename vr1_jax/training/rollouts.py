"""Every answer of every step on disk, compactly: what the report browses."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.rewards.scoring import Scores
from vr1_jax.rl.experience import Judged
from vr1_jax.sharding import local_rows
from vr1_jax.types import Completion

ROLLOUTS = "rollouts"
# What can be said of a record; those without shuffled frames have no `order` (of frames, or of slices).
_OF_RECORD = (
    "file",
    "index",
    "problem",
    "problem_type",
    "options",
    "solution",
    "data_type",
    "path",
    "is_video",
    "frames",
    "frame_indices",
    "seconds_per_slice",
    "shuffled_by",
    "order",
)


def write_rollouts(
    run: Path,
    place: tuple[int, int, int],
    samples: list[Any],
    judged: Judged,
    groups: list[Completion],
) -> None:
    """One file for each `place`: step, attempt (of refilling) and process. A repeated step writes the same.

    Each prompt has fields of its record, what its ordered answers earned, and one or two `groups` of answers:
    to ordered and to shuffled frames. Of an answer, `tokens` and `logps` go together, one to one; they include
    the stop token, which its text leaves out, if the answer `stopped` and did not reach the limit.
    """
    signal = judged.signal
    of_groups = list(_groups(judged, groups))
    prompts = [
        {name: getattr(sample, name) for name in _OF_RECORD if hasattr(sample, name)}
        | {
            "rewards": _rounded(signal.rewards[row]),
            "bonuses": {name: _rounded(table[row]) for name, table in signal.bonuses.items()},
            "advantages": _rounded(signal.advantages[row]),
            "groups": [group[row] for group in of_groups],
        }
        for row, sample in enumerate(samples)
    ]
    step, attempt, process = place
    path = run / ROLLOUTS / f"{step:06d}.{attempt}.{process}.json.gz"
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".partial")
    # ASCII: texts may hold characters that UTF-8 has no form for.
    with gzip.open(aside, "wt", encoding="ascii", compresslevel=5) as file:
        json.dump({"step": step, "attempt": attempt, "prompts": prompts}, file, separators=(",", ":"))
    os.replace(aside, path)


def forget_rollouts(run: Path, first_step: int) -> None:
    """Remove what a run that goes on will do again: by fewer processes, it would leave files of the others."""
    for path in (run / ROLLOUTS).glob("*.json.gz"):
        if int(path.name.partition(".")[0]) >= first_step:
            path.unlink()


def _groups(judged: Judged, groups: list[Completion]) -> Iterator[list[dict[str, Any]]]:
    """Ordered answers by row, then shuffled ones if there are any."""
    for completion, texts, scores in zip(
        groups,
        (judged.ordered, judged.shuffled),
        (judged.scores, judged.shuffled_scores),
        strict=False,  # images have no shuffled group
    ):
        yield _of_rows(texts, scores, completion)


def _of_rows(texts: list[list[str]], scores: Scores, completion: Completion) -> list[dict[str, Any]]:
    tokens, logps, stopped = (local_rows(x) for x in (completion.tokens, completion.logps, completion.stopped))
    lengths = local_rows(completion.mask).sum(-1)
    return [
        {
            "texts": texts[row],
            "tokens": [line[:length].tolist() for line, length in zip(tokens[row], ends, strict=True)],
            "logps": [_rounded(line[:length]) for line, length in zip(logps[row], ends, strict=True)],
            "stopped": stopped[row].tolist(),
            "accuracy": _rounded(scores.accuracy[row]),
            "format": _rounded(scores.format[row]),
            "extra": {name: _rounded(table[row]) for name, table in scores.extra.items()},
        }
        for row, ends in enumerate(lengths)
    ]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]
