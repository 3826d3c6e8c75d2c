"""Work on many items in threads, each of which has a reader of its own: a process that opens files."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from vr1_jax.media.reader import MediaReader

Item = TypeVar("Item")
Reader = TypeVar("Reader")
Result = TypeVar("Result")


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_ahead(
    work: Callable[[Item, Reader], Result], items: Iterable[Item], readers: Sequence[Reader], depth: int
) -> Iterator[Result]:
    """`work` on every item, in order, up to `depth` of them done before they are asked for."""
    free = deque(readers)

    def task(item: Item) -> Result:
        reader = free.popleft()  # as many readers as threads: there is always one
        try:
            return work(item, reader)
        finally:
            free.append(reader)

    pending: deque = deque()
    pool = ThreadPoolExecutor(len(readers))
    try:
        for item in items:
            pending.append(pool.submit(task, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(
    work: Callable[[Item, MediaReader], Result],
    items: Iterable[Item],
    unit: int,
    depth: int = 16,
    workers: int | None = None,
) -> Iterator[Result]:
    """`work` on every item, in order, some of it done in advance by threads with a decoding process each."""
    with ExitStack() as stack:
        readers = [stack.enter_context(MediaReader(unit=unit)) for _ in range(workers or min(4, cpu_count()))]
        yield from work_ahead(work, items, readers, depth)
