"""The output file: upstream's shape, with a passport that says what every figure depends on.

    {"results": [record + output, prediction, reward, correct, passport], "final_acc": [{mean_acc, mean_mra}],
     "summary": figures with intervals, "passport": model, prompt, frames, decoding, versions}

Nothing in it depends on when or how fast it was made, so the same evaluation gives the same bytes.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from vr1_jax.evaluation.benchmarks import Benchmark, Grouping, family, named
from vr1_jax.evaluation.scoring import prediction, score_sample
from vr1_jax.evaluation.statistics import Mean, cluster_means
from vr1_jax.rewards.accuracy import RULES

SEED = 0  # of the bootstrap: intervals are part of the file and must not change from run to run
ALL, ANSWERED, TASKS = "all", "answered", "mean of tasks"


def result_of(record: Any, kept: Mapping[str, Any], rules: str) -> dict[str, Any]:
    """A record with its answer and score. One that could not be asked has no answer and is wrong."""
    output = kept.get("output", "")
    reward = 0.0 if kept["error"] is not None else score_sample(record, output, rules=rules)
    passport = {name: kept[name] for name in ("answer_tokens", "stopped") if name in kept}
    return (record if isinstance(record, dict) else {"record": record}) | {
        "output": output,
        "prediction": prediction(output, rules=rules),
        "reward": reward,
        "correct": reward == 1.0,
        "passport": kept["shown"] | passport | {"error": kept["error"]},
    }


def final_acc(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Upstream's two figures: accuracy of everything but regression, mean relative accuracy of that."""
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for result in results:
        by_kind[result.get("problem_type") == "regression"].append(result["reward"])
    mean_acc, mean_mra = (float(np.mean(by_kind[kind])) if by_kind[kind] else 0.0 for kind in (False, True))
    return {"mean_acc": mean_acc, "mean_mra": mean_mra}


def summarize(results: Sequence[Mapping[str, Any]], benchmark: Benchmark, rules: str) -> dict[str, Any]:
    rewards = np.array([result["reward"] for result in results])
    answered = np.array([error_of(result) is None for result in results])
    groupings: dict[str, Grouping] = {"problem_type": named("problem_type"), **benchmark.groupings}
    labels = {name: [group(result) for result in results] for name, group in groupings.items()}
    masks = {ALL: np.ones(len(results), bool), ANSWERED: answered}
    masks |= {
        f"{name}={label}": np.array([found == label for found in labels[name]])
        for name in labels
        for label in sorted({found for found in labels[name] if found is not None})
    }
    means = cluster_means(
        rewards,
        clusters_of(results),
        masks,
        seed=SEED,
        averages=_task_mean([*masks]) if benchmark.task_mean else {},
    )
    other = next(name for name in RULES if name != rules)
    broken = [(number, result) for number, result in enumerate(results) if error_of(result) is not None]
    return {
        "benchmark": benchmark.name or None,
        "rules": rules,
        "samples": len(results),
        "broken": len(broken),
        "cut_short": sum(result["passport"].get("stopped") is False for result in results),
        "score": {name: means[name].to_json() for name in (ALL, ANSWERED, TASKS) if name in means},
        "by": {name: _of_group(means, name) for name in groupings if _of_group(means, name)},
        f"score_by_{other}_rules": float(np.mean([_rescored(result, other) for result in results])),
        "broken_samples": [
            {"index": number, "path": result.get("path"), "error": error_of(result)} for number, result in broken
        ],
    }


def error_of(result: Mapping[str, Any]) -> str | None:
    return result.get("passport", {}).get("error")


def clusters_of(results: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Questions about one file belong together; each question without a file is its own."""
    return [str(result.get("path") or ("", number)) for number, result in enumerate(results)]


def _rescored(result: Mapping[str, Any], rules: str) -> float:
    return 0.0 if error_of(result) is not None else score_sample(result, result["output"], rules=rules)


def _of_group(means: Mapping[str, Mean], name: str) -> dict[str, Any]:
    prefix = f"{name}="
    return {key.removeprefix(prefix): mean.to_json() for key, mean in means.items() if key.startswith(prefix)}


def _task_mean(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Every task counts the same, and tasks of one family as one task between them."""
    tasks = [name.removeprefix("task=") for name in names if name.startswith("task=")]
    families = [family(task) for task in tasks]
    return {TASKS: {f"task={task}": 1 / families.count(own) for task, own in zip(tasks, families, strict=True)}}
