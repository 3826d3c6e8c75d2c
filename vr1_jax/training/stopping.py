"""A polite end: the first SIGTERM asks the loop to save and leave, the second one kills."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Yields `stop_requested`, to be asked once a step, by every process at the same step.

    A signal reaches the processes of a run between different steps, or only one of them; they all stop after
    the same step as soon as one was told to. Signals are SIGTERM unless named. For the main thread only.
    """
    received = False
    previous = {number: signal.getsignal(number) for number in signals or (signal.SIGTERM,)}

    def request(number: int, _: object) -> None:
        nonlocal received
        received = True
        signal.signal(number, previous[number])

    def stop_requested() -> bool:
        if jax.process_count() == 1:
            return received
        return bool(multihost_utils.process_allgather(np.array(received)).any())

    for number in previous:
        signal.signal(number, request)
    try:
        yield stop_requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
