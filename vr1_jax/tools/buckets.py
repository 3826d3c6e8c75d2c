"""Which few shapes to compile: buckets chosen from the sizes of the data so that little is computed on padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vr1_jax.data.collate import Bucket
from vr1_jax.data.sources import KINDS, PATCH_COST, Kind, cost

MAX_CANDIDATES = 150  # distinct shapes that are compared pair by pair


@dataclass(frozen=True)
class Choice:
    """Buckets by kind, and what they cost: `waste` is the share of the computation that goes to padding."""

    buckets: Mapping[Kind, tuple[Bucket, ...]]
    waste: float


def choose_buckets(
    sizes: Mapping[Kind, np.ndarray], count: int, *, patch_step: int = 16, token_step: int = 64
) -> Choice:
    """About the best `count` buckets, shared among the kinds, for sizes [N, 3] (slices, patches, tokens).

    Sizes are rounded up to the steps, which leaves room for what a sample of the data missed. Then, as long as
    there are too many, those two buckets of a kind become one whose union costs least.
    """
    sizes = {kind: array for kind, array in sizes.items() if len(array)}
    if count < len(sizes):
        raise ValueError(f"{count} buckets for {len(sizes)} kinds of records; each kind needs one")
    shapes, counts, kinds = [], [], []
    for kind, array in sizes.items():
        distinct, numbers = _distinct(array, patch_step, token_step)
        shapes.append(distinct)
        counts.append(numbers)
        kinds.append(np.full(len(distinct), KINDS.index(kind)))
    shapes, counts, kinds = map(np.concatenate, (shapes, counts, kinds))
    while len(shapes) > count:
        shapes, counts, kinds = _merge_cheapest(shapes, counts, kinds)
    buckets = {
        kind: tuple(sorted((Bucket(*row.tolist()) for row in shapes[kinds == KINDS.index(kind)]), key=cost))
        for kind in sizes
    }
    return Choice(buckets, _waste(sizes, buckets))


def _distinct(sizes: np.ndarray, patch_step: int, token_step: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct sizes after rounding up, coarsely enough that there are not too many, and how often each occurs."""
    steps = np.array([1, patch_step, token_step])
    while True:
        distinct, counts = np.unique(-(-sizes // steps) * steps, axis=0, return_counts=True)
        if len(distinct) <= MAX_CANDIDATES:
            return distinct, counts
        # Double the finest step in relation to what it measures.
        steps[np.argmax(sizes.max(axis=0) / steps)] *= 2


def _costs(shapes: np.ndarray) -> np.ndarray:
    return shapes[..., 2] + PATCH_COST * shapes[..., 0] * shapes[..., 1]


def _merge_cheapest(shapes, counts, kinds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unions = np.maximum(shapes[:, None], shapes[None])
    added = (_costs(unions) - _costs(shapes)[:, None]) * counts[:, None]
    added = added + added.T
    added[(kinds[:, None] != kinds[None]) | np.eye(len(kinds), dtype=bool)] = np.inf
    first, second = np.unravel_index(np.argmin(added), added.shape)
    keep = np.arange(len(shapes)) != second
    shapes, counts = shapes.copy(), counts.copy()
    shapes[first], counts[first] = unions[first, second], counts[first] + counts[second]
    return shapes[keep], counts[keep], kinds[keep]


def _waste(sizes: Mapping[Kind, np.ndarray], buckets: Mapping[Kind, Sequence[Bucket]]) -> float:
    needed = padded = 0.0
    for kind, array in sizes.items():
        chosen = np.array([(b.slices, b.patches, b.tokens) for b in buckets[kind]])
        holds = (array[:, None] <= chosen[None]).all(axis=2)
        padded += np.where(holds, _costs(chosen)[None], np.inf).min(axis=1).sum()
        needed += _costs(array).sum()
    return float(1 - needed / padded)
