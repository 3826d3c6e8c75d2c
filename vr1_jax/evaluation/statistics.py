"""Means with bootstrap intervals. Questions about one video are drawn together: they are not independent.

The bootstrap draws whole clusters with replacement, so a benchmark of 2,700 questions on 900 videos has the
uncertainty of 900 draws. All means of one call share their draws.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
