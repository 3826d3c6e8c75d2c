"""Seconds of things that are done again and again: medians, and how far they scatter."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timing:
    seconds: list[float]
    cpu_seconds: list[float]  # of all threads of this process

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cores(self) -> float:
        """Busy cores on average. Fewer than the machine has, on a CPU: somebody else had them, or nobody."""
        return sum(self.cpu_seconds) / max(sum(self.seconds), 1e-9)

    def as_json(self) -> dict[str, float | int]:
        return {
            "median": self.median,
            "min": min(self.seconds),
            "max": max(self.seconds),
            "repeats": len(self.seconds),
            "cores": self.cores,
        }


@dataclass
class Stopwatch:
    """Times phases by name. What is measured must wait for the device itself."""

    timings: dict[str, Timing] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        timing = self.timings.setdefault(name, Timing([], []))
        timing.seconds.append(time.perf_counter() - wall)
        timing.cpu_seconds.append(time.process_time() - cpu)

    def forget(self) -> dict[str, Timing]:
        """Start anew, after warming up; gives what was measured so far."""
        before, self.timings = self.timings, {}
        return before
