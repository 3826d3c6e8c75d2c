"""How a sequence that attends to itself is cut into blocks of queries; none meets a key after its last query."""

from itertools import pairwise

# Small blocks skip more of the keys that come later, and are more operations.
_SMALL, _MOST_SMALL = 256, 6

# No block is larger: the scores of one, [N, block, S] in fp32, must fit beside everything else.
LARGEST = 1024


def bounds(length: int) -> list[int]:
    """0, ..., length, evenly spaced."""
    count = max(min(-(-length // _SMALL), _MOST_SMALL), -(-length // LARGEST))
    return [length * block // count for block in range(count + 1)]


def scores(length: int) -> int:
    """(query, key) pairs that are computed: between half of them, for many blocks, and all."""
    return sum((end - first) * end for first, end in pairwise(bounds(length)))
