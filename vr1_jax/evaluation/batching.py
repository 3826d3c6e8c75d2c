"""Prompts of any size in batches of few shapes: padding costs time, but a new shape costs a compilation.

A batch is padded to its largest member, rounded up. Prompts are sorted by size, so that neighbours waste
little, and a shape that was used before is used again unless it is much too large.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import jax

from vr1_jax.data.collate import Bucket
from vr1_jax.models.config import ModelConfig

MAX_ROWS = 8
# Bounds on what lives at once: tokens of a batch, and pairs of patches that attend to each other.
TOKENS_AT_ONCE = 16_384
PATCH_PAIRS_AT_ONCE = 2**24
# A batch may be padded to this much of its members' own cost, and a program reused at this much of it.
BATCH_WASTE, REUSE_WASTE = 2.0, 3.0
# An estimate of how many rows one device has memory for, made to stay on the safe side.
MOST_ROWS = 32
SHARE = 0.6  # of what the weights leave free
SCORE_BYTES = 10  # float32 scores of attention, their softmax in float32, and its copy in bfloat16
QUERIES_AT_ONCE = 1024  # of a prompt, whose scores against all keys exist at the same time
PATCHES_PER_TOKEN = 10  # patches whose way through the vision tower costs one token's way through the decoder


@dataclass(frozen=True, order=True)
class Size:
    """What one row of a batch is padded to: a prompt, and `answer` tokens after it."""

    bucket: Bucket
    answer: int = 0

    @property
    def cost(self) -> float:
        bucket = self.bucket
        return bucket.tokens + self.answer + bucket.slices * bucket.patches / PATCHES_PER_TOKEN

    @property
    def rows(self) -> int:
        """The most rows of this size that a batch may have: a power of two."""
        tokens, pairs = self.bucket.tokens + self.answer, self.bucket.slices * self.bucket.patches**2
        fitting = min(MAX_ROWS, TOKENS_AT_ONCE // tokens, PATCH_PAIRS_AT_ONCE // pairs)
        return power_of_two(fitting)

    def holds(self, other: "Size") -> bool:
        return self.bucket.holds(other.bucket) and self.answer >= other.answer

    def union(self, other: "Size") -> "Size":
        a, b = self.bucket, other.bucket
        bucket = Bucket(max(a.slices, b.slices), max(a.patches, b.patches), max(a.tokens, b.tokens))
        return Size(bucket, max(self.answer, other.answer))

    def rounded(self) -> "Size":
        """A little larger. Never without patches: a text prompt shares its program with pictures."""
        bucket = self.bucket
        return Size(
            Bucket(round_up(bucket.slices, 1), round_up(bucket.patches, 64), round_up(bucket.tokens, 64)),
            round_up(self.answer, 32) if self.answer else 0,
        )


@dataclass(frozen=True)
class Shape:
    """What a program is compiled for."""

    size: Size
    rows: int

    @property
    def cost(self) -> float:
        return self.rows * self.size.cost


@dataclass
class Batcher:
    """Cuts lists of sizes into batches, and remembers the shapes it has asked for.

    `devices` share the rows of a batch: there are as many for each, and the limits hold for each.
    `most_rows` of a size go to one device, a power of two.
    """

    devices: int = 1
    most_rows: Callable[[Size], int] = lambda size: size.rows
    shapes: set[Shape] = field(default_factory=set)

    def batches(self, sizes: Sequence[Size]) -> Iterator[tuple[list[int], Shape]]:
        """Indices into `sizes`, each once, with the shape that their batch is padded to."""
        batch: list[int] = []
        for index in sorted(range(len(sizes)), key=sizes.__getitem__):
            if batch and not self._belongs([sizes[i] for i in batch], sizes[index]):
                yield batch, self._shape([sizes[i] for i in batch])
                batch = []
            batch.append(index)
        if batch:
            yield batch, self._shape([sizes[i] for i in batch])

    def _shape(self, members: list[Size]) -> Shape:
        size = _padded(members)
        rows_each = -(-len(members) // self.devices)
        wanted = Shape(size, self.devices * (1 << (rows_each - 1).bit_length()))
        known = (
            shape
            for shape in self.shapes
            if shape.size.holds(size) and shape.rows >= len(members) and shape.cost <= REUSE_WASTE * wanted.cost
        )
        shape = min(known, key=lambda shape: shape.cost, default=wanted)
        self.shapes.add(shape)
        return shape

    def _belongs(self, batch: list[Size], size: Size) -> bool:
        members = [*batch, size]
        padded = _padded(members)
        own = sum(member.rounded().cost for member in members)
        fits = len(members) <= self.devices * self.most_rows(padded)
        return fits and len(members) * padded.cost <= BATCH_WASTE * own


def round_up(count: int, smallest: int) -> int:
    """To a ladder that starts at `smallest` and has eight steps, or fewer, between powers of two."""
    count = max(count, smallest)
    step = max(-(-smallest // 4), 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def _padded(members: list[Size]) -> Size:
    union = members[0]
    for member in members[1:]:
        union = union.union(member)
    return union.rounded()


def rows_per_device(
    config: ModelConfig, itemsize: int, devices: Sequence[jax.Device], chosen: int | None = None
) -> Callable[[Size], int]:
    """The most rows of a size on one device: as chosen, or by its free memory; where that is unknown, few."""
    if chosen is not None:
        return lambda size: power_of_two(chosen)
    free = _free_bytes(devices)
    if free is None:
        return lambda size: size.rows
    return lambda size: power_of_two(min(MOST_ROWS, SHARE * free // row_bytes(size, config, itemsize)))


def row_bytes(size: Size, config: ModelConfig, itemsize: int) -> int:
    """What sampling an answer to one prompt needs besides the weights."""
    text, vision, bucket = config.text, config.vision, size.bucket
    cache = (bucket.tokens + size.answer) * text.layers * 2 * text.kv_heads * text.head_dim * itemsize
    patches = bucket.slices * bucket.patches
    return (
        2 * cache
        + bucket.tokens * (3 * text.mlp + 8 * text.width) * itemsize
        + text.heads * min(QUERIES_AT_ONCE, bucket.tokens) * bucket.tokens * SCORE_BYTES
        + patches * (3 * vision.mlp + 8 * vision.width + 5 * vision.patch_values) * itemsize
        + vision.heads * patches * bucket.patches * SCORE_BYTES
    )


def power_of_two(most: int | float) -> int:
    """The largest that is not above `most`, at least 1."""
    return 1 << (max(1, int(most)).bit_length() - 1)


def _free_bytes(devices: Sequence[jax.Device]) -> int | None:
    found = [device.memory_stats() for device in devices]
    if not all(stats and "bytes_limit" in stats for stats in found):
        return None
    return min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in found)
