"""Two results on the same questions: how far apart, how sure, and through what.

Each pair of answers is put down to the first of these causes that holds:

    broken in one   one of them could not be asked the question
    frames          other frames, or the same at another size
    prompt          other words around the question
    extraction      the same output, read or scored otherwise
    output          the same question put the same way, answered otherwise
    none            the same output with the same score

Results without a passport (upstream's own files) cannot tell frames and prompts apart: such pairs count as
extraction, output or none.
"""

import collections
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.config_files import flat
from vr1_jax.errors import UserError
from vr1_jax.evaluation.results import SEED, answers_of, cluster_means, clusters_of, error_of, sign_flip_p

CAUSES = ("broken in one", "frames", "prompt", "extraction", "output", "none")
KEY = ("problem", "path", "options", "solution", "problem_type")
SEEN = ("frames", "timestamps", "size", "grid")
Result = Mapping[str, Any]


def read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, list) or not results:
        raise UserError(f"{path}: has no list of results; --compare takes two outputs of this command")
    for number, result in enumerate(results):
        if not isinstance(result, dict) or not isinstance(result.get("reward"), int | float):
            raise UserError(f"{path}: result {number} has no reward")
    return content


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """B against A, as plain JSON. Questions that only one of them has are counted and left out."""
    pairs, only_a, only_b = _match(a["results"], b["results"])
    if not pairs:
        raise UserError("the two files have no question in common")
    rewards = np.array([[first["reward"], second["reward"]] for first, second in pairs], np.float64)
    difference = rewards[:, 1] - rewards[:, 0]
    causes = np.array([cause(first, second) for first, second in pairs])
    clusters = clusters_of([pair[0] for pair in pairs])
    mean = cluster_means(difference, clusters, {"all": np.ones(len(pairs), bool)}, seed=SEED, shares=False)
    passports = [flat(result.get("passport") or {}) for result in (a, b)]
    settings = {
        name: [passport.get(name) for passport in passports] for name in sorted({*passports[0], *passports[1]})
    }
    return {
        "samples": len(pairs),
        "only_in": {"a": only_a, "b": only_b},
        "score": {"a": float(rewards[:, 0].mean()), "b": float(rewards[:, 1].mean())},
        "difference": mean["all"].to_json(),
        "right": _table(rewards == 1.0, clusters),
        "causes": {
            name: {
                "samples": int((causes == name).sum()),
                "better_in_a": int((difference[causes == name] < 0).sum()),
                "better_in_b": int((difference[causes == name] > 0).sum()),
                "difference": float(difference[causes == name].sum() / len(pairs)),
            }
            for name in CAUSES
        },
        "settings": {name: values for name, values in settings.items() if values[0] != values[1]},
    }


def cause(a: Result, b: Result) -> str:
    """Why these two answers to one question may differ."""
    if (error_of(a) is None) != (error_of(b) is None):
        return "broken in one"
    shown = [result.get("passport") for result in (a, b)]
    if all(shown):
        if any(shown[0].get(name) != shown[1].get(name) for name in SEEN):
            return "frames"
        if shown[0].get("prompt") != shown[1].get("prompt"):
            return "prompt"
    first, second = ([answer.get("output") for answer in answers_of(result)] for result in (a, b))
    if first != second:
        return "output"
    same = all(a.get(name) == b.get(name) for name in ("prediction", "reward"))
    return "none" if same else "extraction"


def _match(a: Sequence[Result], b: Sequence[Result]) -> tuple[list[tuple[Result, Result]], int, int]:
    """Pairs of the same question, in the order of A; a question asked n times is matched n times."""
    waiting = collections.defaultdict(collections.deque)
    for result in b:
        waiting[_key(result)].append(result)
    pairs = [(result, waiting[key].popleft()) for result in a if waiting.get(key := _key(result))]
    return pairs, len(a) - len(pairs), len(b) - len(pairs)


def _key(result: Result) -> str:
    # Copies of a benchmark differ in what they put before a path.
    parts = {name: result.get(name) for name in KEY} | {"path": str(result.get("path")).rpartition("/")[2]}
    return json.dumps(parts, sort_keys=True)


def _table(right: np.ndarray, clusters: Sequence[Hashable]) -> dict[str, Any]:
    both, only_a, only_b = ((right == pattern).all(1).sum() for pattern in ((1, 1), (1, 0), (0, 1)))
    return {
        "both": int(both),
        "only_a": int(only_a),
        "only_b": int(only_b),
        "neither": int(len(right) - both - only_a - only_b),
        "p": sign_flip_p(right[:, 1].astype(float) - right[:, 0], clusters, seed=SEED),
    }
