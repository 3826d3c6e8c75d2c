"""Seconds of things that are done again and again. Imports no jax: our peers' processes are timed by it too."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


class Stopwatch:
    """Seconds of one repeat by phase, as `training.metrics.Phases` counts them, and processor time beside them."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}  # of all threads of this process

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What is measured must wait for the device itself."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - wall
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - cpu


@dataclass(frozen=True)
class Timing:
    """One phase in all repeats."""

    seconds: list[float]
    cpu_seconds: list[float]
    first: float  # seconds of the first run of all, which compiles

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __sub__(self, part: "Timing") -> "Timing":
        """A phase without a part timed in the same repeats; what compiled in the first is not told apart."""
        seconds = [whole - less for whole, less in zip(self.seconds, part.seconds, strict=True)]
        cpu_seconds = [whole - less for whole, less in zip(self.cpu_seconds, part.cpu_seconds, strict=True)]
        return Timing(seconds, cpu_seconds, self.first)

    def to_json(self) -> dict[str, float | int]:
        """`cores` were busy on average; fewer than a CPU has: somebody else had them, or nobody."""
        return {
            "median": self.median,
            "min": min(self.seconds),
            "max": max(self.seconds),
            "repeats": len(self.seconds),
            "cores": sum(self.cpu_seconds) / max(sum(self.seconds), 1e-9),
        }


def repeat(body: Callable[[Stopwatch], None], repeats: int, warm_up: int = 1) -> dict[str, Timing]:
    """Timings of `body` by the phases that it names, after warming up."""
    watches = [Stopwatch() for _ in range(warm_up + repeats)]
    for watch in watches:
        body(watch)
    first, warm = watches[0], watches[warm_up:]
    return {
        name: Timing([watch.seconds[name] for watch in warm], [watch.cpu_seconds[name] for watch in warm], seconds)
        for name, seconds in first.seconds.items()
    }
