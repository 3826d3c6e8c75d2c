"""The output file: upstream's shape, with a passport that says what every figure depends on.

    {"results": [record + output, prediction, reward, correct, passport], "final_acc": [{mean_acc, mean_mra}],
     "summary": figures with intervals, "passport": model, prompt, frames, decoding, versions}

With several answers to each question a result's passport has them all as "samples"; its reward is their mean, its
output the first. pass@k counts answers of reward 1, maj@k is the reward of the most frequent prediction.

Nothing in it depends on when or how fast it was made, so the same evaluation gives the same bytes.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vr1_jax.evaluation.benchmarks import Benchmark, Grouping, family, named
from vr1_jax.evaluation.scoring import prediction, score_sample
from vr1_jax.rewards.accuracy import RULES

# Means with bootstrap intervals. Questions about one video are drawn together: they are not independent.
#
# The bootstrap draws whole clusters with replacement, so a benchmark of 2,700 questions on 900 videos has the
# uncertainty of 900 draws. All means of one call share their draws.

DRAWS = 2000
LEVEL = 0.95
DRAWS_AT_ONCE = 100
FLIPS = 10_000
FLIPPED_EXACTLY = 16  # clusters that differ: 65,536 patterns of signs


@dataclass(frozen=True)
class Mean:
    """Of `count` values; the interval is None where there are fewer than two clusters to draw from."""

    count: int
    mean: float | None
    interval: tuple[float, float] | None

    def to_json(self) -> dict:
        return {"count": self.count, "mean": self.mean, "interval": self.interval and list(self.interval)}


def cluster_means(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    groups: Mapping[str, np.ndarray],
    *,
    seed: int,
    averages: Mapping[str, Mapping[str, float]] | None = None,
    shares: bool = True,
) -> dict[str, Mean]:
    """The mean of the values in each group (a mask), and weighted averages of such means, all with intervals.

    `averages` gives each average its groups' weights, which are scaled to sum to one. `shares`: values lie in
    0..1. Where all of a group are 0, or all 1, every draw is the same; then the interval is the exact one of as
    many independent trials as there are clusters.
    """
    values = np.asarray(values, np.float64)
    labels = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    of_value = np.array([labels[cluster] for cluster in clusters], np.int64)
    names = list(groups)
    sums, counts = np.zeros((len(labels), len(names))), np.zeros((len(labels), len(names)))
    for column, name in enumerate(names):
        mask = np.asarray(groups[name], bool)
        np.add.at(sums[:, column], of_value[mask], values[mask])
        np.add.at(counts[:, column], of_value[mask], 1)
    draws = _draw_means(sums, counts, seed)
    means = _ratio(sums.sum(0), counts.sum(0))
    found = {
        name: _mean(int(counts[:, n].sum()), means[n], draws[:, n], int((counts[:, n] > 0).sum()), shares)
        for n, name in enumerate(names)
    }
    for name, weights in (averages or {}).items():
        columns = [names.index(group) for group in weights]
        share = np.array(list(weights.values())) / sum(weights.values())
        spread = draws[:, columns] @ share
        count = sum(found[group].count for group in weights)
        found[name] = _mean(count, means[columns] @ share, spread, len(labels), shares)
    return found


def _draw_means(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """[DRAWS, groups]; nan where a draw has no value of a group."""
    rng, total = np.random.default_rng(seed), len(sums)
    if total == 0:
        return np.full((DRAWS, sums.shape[1]), np.nan)
    parts = []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        times = rng.multinomial(total, np.full(total, 1 / total), DRAWS_AT_ONCE).astype(np.float64)
        parts.append(_ratio(times @ sums, times @ counts))
    return np.concatenate(parts)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _mean(count: int, mean: float, draws: np.ndarray, clusters: int, shares: bool) -> Mean:
    if not count or math.isnan(mean):
        return Mean(count, None, None)
    draws = draws[~np.isnan(draws)]
    if clusters < 2 or not len(draws):
        return Mean(count, float(mean), None)
    if shares and mean in (0.0, 1.0):
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / clusters)
        return Mean(count, float(mean), (0.0, reach) if mean == 0 else (1 - reach, 1.0))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Mean(count, float(mean), (float(low), float(high)))


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Chance that k of these answers, drawn without replacement, hold a right one: 1 - C(n-c, k) / C(n, k)."""
    n, c = len(correct), sum(correct)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(predictions: Sequence[str], rewards: Sequence[float], k: int) -> float:
    """Reward of the most frequent prediction among k answers: the mean over as many blocks of k as there are.

    An empty prediction has no vote; of equally frequent ones the first drawn wins.
    """
    found = []
    for first in range(0, len(predictions) - k + 1, k):
        votes = [prediction for prediction in predictions[first : first + k] if prediction]
        winner = Counter(votes).most_common(1)[0][0] if votes else ""
        found.append(rewards[predictions.index(winner, first)] if winner else 0.0)
    return sum(found) / len(found)


def sign_flip_p(differences: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], *, seed: int) -> float:
    """Two-sided chance of a sum at least this far from 0 if each cluster's sign were a coin's.

    Under the hypothesis that two models are alike, all differences of a cluster change their sign together:
    answers about one video are not independent, and McNemar's test takes them to be. Exact for few clusters,
    else from random signs.
    """
    sums: dict[Hashable, float] = {}
    for cluster, difference in zip(clusters, differences, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(difference)
    flipped = np.array([abs(total) for total in sums.values() if total])
    reached = abs(sum(sums.values())) - 1e-9  # sums of the same numbers in another order
    if len(flipped) <= FLIPPED_EXACTLY:
        totals = np.zeros(1)
        for size in flipped:
            totals = np.concatenate([totals + size, totals - size])
        return float(np.mean(np.abs(totals) >= reached))
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(FLIPS // DRAWS_AT_ONCE):
        signs = rng.choice((-1.0, 1.0), (DRAWS_AT_ONCE, len(flipped)))
        hits += int((np.abs(signs @ flipped) >= reached).sum())
    return (hits + 1) / (FLIPS + 1)


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
