"""Which record stands where: a pure function of the seed and the step.

Records are sorted into *groups*, one to a bucket, and every step takes its prompts from one group. An epoch has
as many steps as it takes to see every record once, the groups' turns shuffled. A group's records are an endless
sequence of passes, each shuffled anew; a batch may take the end of one pass and the start of the next, so no
record is left out and none has a fixed neighbour.

A place whose record turns out bad is filled by the record at the same place of another shuffled order of the
group, then by the ones after it. That order depends on nothing that was decoded, so neither other processes nor
earlier steps need to be asked. The price is that about as many good records are seen twice in a pass as there
are bad ones.

A step may ask for further batches of its own group. They too come from shuffled orders of their own, so that how
often steps ask changes nothing for the steps after them.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

TURNS, PLACES, SUBSTITUTES, REFILLS = range(4)  # what a stream of random numbers is for


class Order:
    """Batches of `rows` records from groups of the given sizes. `shares` are the groups' parts of the steps."""

    def __init__(self, sizes: Sequence[int], rows: int, seed: int, shares: Sequence[float] | None = None):
        self.sizes, self.rows, self.seed = tuple(sizes), rows, seed
        batches = [-(-size // rows) for size in sizes]
        if shares is not None:
            total = sum(batches)
            batches = [max(1, round(total * share)) if share > 0 else 0 for share in shares]
        self.batches = tuple(batches)

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.batches)

    def batch(self, step: int) -> tuple[int, int]:
        """The step's group, and the place of the batch's first row in the group's endless sequence."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        groups, earlier = _turns(self.seed, self.batches, epoch)
        group = int(groups[turn])
        return group, (epoch * self.batches[group] + int(earlier[turn])) * self.rows

    def record(self, group: int, place: int, attempt: int = 0, refill: int = 0) -> int:
        """Which record fills a place, after `attempt` of them were refused; of further batch `refill`, if any."""
        size = self.sizes[group]
        number, offset = divmod(place, size)
        if refill:
            return int(_permutation(self.seed, REFILLS, group, number, size, refill)[(offset + attempt) % size])
        if attempt == 0:
            return int(_permutation(self.seed, PLACES, group, number, size)[offset])
        substitutes = _permutation(self.seed, SUBSTITUTES, group, number, size)
        return int(substitutes[(offset + attempt - 1) % size])


@lru_cache(maxsize=4)
def _turns(seed: int, batches: tuple[int, ...], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """For each step of an epoch its group, and how many earlier steps of the epoch had the same one."""
    groups = np.repeat(np.arange(len(batches)), batches)
    groups = groups[np.random.default_rng([seed, TURNS, epoch]).permutation(len(groups))]
    earlier = np.empty(len(groups), np.int64)
    for group, count in enumerate(batches):
        earlier[groups == group] = np.arange(count)
    return groups, earlier


@lru_cache(maxsize=16)
def _permutation(seed: int, purpose: int, group: int, number: int, size: int, *refill: int) -> np.ndarray:
    return np.random.default_rng([seed, purpose, group, number, *refill]).permutation(size)
