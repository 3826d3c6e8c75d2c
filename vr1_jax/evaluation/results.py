"""The output file: upstream's shape, with a passport that says what every figure depends on.

    {"results": [record + output, prediction, reward, correct, passport], "final_acc": [{mean_acc, mean_mra}],
     "summary": figures with intervals, "passport": model, prompt, frames, decoding, versions}

With several answers to each question a result's passport has them all as "samples"; its reward is their mean, its
output the first. pass@k counts answers of reward 1, maj@k is the reward of the most frequent prediction.

Nothing in it depends on when or how fast it was made, so the same evaluation gives the same bytes.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from vr1_jax.evaluation.benchmarks import Benchmark, Grouping, family, named
from vr1_jax.evaluation.scoring import prediction, score_sample
from vr1_jax.evaluation.statistics import Mean, cluster_means, majority_at_k, pass_at_k
from vr1_jax.rewards.accuracy import RULES

SEED = 0  # of the bootstrap: intervals are part of the file and must not change from run to run
ALL, ANSWERED, TASKS = "all", "answered", "mean of tasks"


def result_of(record: Any, kept: Mapping[str, Any], rules: str) -> dict[str, Any]:
    """A record with its answer and score. One that could not be asked has no answer and is wrong."""
    samples = [_scored(record, sample, kept["error"], rules) for sample in kept.get("samples", [kept])]
    reward = float(np.mean([sample["reward"] for sample in samples]))
    passport = {name: kept[name] for name in ("answer_tokens", "stopped") if name in kept}
    passport |= {"samples": samples} if "samples" in kept else {}
    return (record if isinstance(record, dict) else {"record": record}) | {
        "output": samples[0]["output"],
        "prediction": samples[0]["prediction"],
        "reward": reward,
        "correct": reward == 1.0,
        "passport": kept["shown"] | passport | {"error": kept["error"]},
    }


def _scored(record: Any, answer: Mapping[str, Any], error: str | None, rules: str) -> dict[str, Any]:
    output = answer.get("output", "")
    reward = 0.0 if error is not None else score_sample(record, output, rules=rules)
    passport = {name: answer[name] for name in ("answer_tokens", "stopped") if name in answer}
    read = {"output": output, "prediction": prediction(output, rules=rules)}
    return read | {"reward": reward, "correct": reward == 1.0} | passport


def answers_of(result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The answers with their scores: the result itself where there is one only."""
    passport = result.get("passport") or {}
    return passport.get("samples") or [result | {"stopped": passport.get("stopped")}]


def final_acc(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Upstream's two figures: accuracy of everything but regression, mean relative accuracy of that."""
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for result in results:
        by_kind[result.get("problem_type") == "regression"].append(result["reward"])
    mean_acc, mean_mra = (float(np.mean(by_kind[kind])) if by_kind[kind] else 0.0 for kind in (False, True))
    return {"mean_acc": mean_acc, "mean_mra": mean_mra}


def summarize(
    results: Sequence[Mapping[str, Any]], benchmark: Benchmark, rules: str, answers_each: int = 1
) -> dict[str, Any]:
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
        "cut_short": sum(answer.get("stopped") is False for result in results for answer in answers_of(result)),
        "score": {name: means[name].to_json() for name in (ALL, ANSWERED, TASKS) if name in means},
        **(_of_several(results, answers_each) if answers_each > 1 else {}),
        "by": {name: _of_group(means, name) for name in groupings if _of_group(means, name)},
        f"score_by_{other}_rules": float(np.mean([_rescored(result, other) for result in results])),
        "broken_samples": [
            {"index": number, "path": result.get("path"), "error": error_of(result)} for number, result in broken
        ],
    }


def _of_several(results: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """pass@k and maj@k for powers of two and for all n answers; a question that could not be asked counts 0."""
    found: dict[str, Any] = {"answers_each": n, "pass@k": {}, "maj@k": {}}
    everything, clusters = {ALL: np.ones(len(results), bool)}, clusters_of(results)
    for k in [*(2**power for power in range((n - 1).bit_length())), n]:
        values = np.zeros((len(results), 2))
        for number, result in enumerate(results):
            if error_of(result) is None:
                predictions, rewards, correct = (
                    [answer[name] for answer in answers_of(result)] for name in ("prediction", "reward", "correct")
                )
                values[number] = pass_at_k(correct, k), majority_at_k(predictions, rewards, k)
        for name, column in zip(("pass@k", "maj@k"), values.T, strict=True):
            found[name][str(k)] = cluster_means(column, clusters, everything, seed=SEED)[ALL].to_json()
    return found


def error_of(result: Mapping[str, Any]) -> str | None:
    return result.get("passport", {}).get("error")


def clusters_of(results: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Questions about one file belong together; each question without a file is its own."""
    return [str(result.get("path") or ("", number)) for number, result in enumerate(results)]


def _rescored(result: Mapping[str, Any], rules: str) -> float:
    if error_of(result) is not None:
        return 0.0
    return float(np.mean([score_sample(result, one["output"], rules=rules) for one in answers_of(result)]))


def _of_group(means: Mapping[str, Mean], name: str) -> dict[str, Any]:
    prefix = f"{name}="
    return {key.removeprefix(prefix): mean.to_json() for key, mean in means.items() if key.startswith(prefix)}


def _task_mean(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Every task counts the same, and tasks of one family as one task between them."""
    tasks = [name.removeprefix("task=") for name in names if name.startswith("task=")]
    families = [family(task) for task in tasks]
    return {TASKS: {f"task={task}": 1 / families.count(own) for task, own in zip(tasks, families, strict=True)}}
