"""Runs of several processes: joining them, what they tell each other on the host, failing, stopping."""

import asyncio
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from vr1_jax.errors import UserError

_ASK_EVERY = 0.2  # seconds, while waiting for others that may have failed
_REASON_BYTES = 500


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the run's processes: by the arguments, else as the environment says, else there is only this one.

    SLURM, Open MPI and TPU pods are recognised by jax from what they set.
    On Kubernetes an indexed job sets JOB_COMPLETION_INDEX; VR1_PROCESSES and VR1_COORDINATOR (the first pod's
    host:port) must be set by its manifest.
    """
    if coordinator is None and "VR1_COORDINATOR" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        coordinator = os.environ["VR1_COORDINATOR"]
        if not os.environ.get("VR1_PROCESSES", "").isdecimal():
            raise UserError("VR1_COORDINATOR is set; VR1_PROCESSES must say how many processes there are")
        processes, process = int(os.environ["VR1_PROCESSES"]), int(os.environ["JOB_COMPLETION_INDEX"])
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator is not None:
        jax.distributed.initialize(coordinator, processes, process)
    elif _scheduled():
        jax.distributed.initialize()


def _scheduled() -> bool:
    several = (os.environ.get("SLURM_NTASKS", "1"), os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    on_tpu = importlib.util.find_spec("libtpu") is not None and os.environ.get("JAX_PLATFORMS", "tpu") != "cpu"
    return any(count not in ("", "1") for count in several) or on_tpu


@contextmanager
def agreed() -> Iterator[None]:
    """Every process does the block, and then waits for the others; where one fails, all do, at once."""
    try:
        yield
    except Exception as error:
        _failures(error)
        raise
    for process, reason in enumerate(_failures(None)):
        if reason:
            raise UserError(f"process {process}: {reason}")


def _failures(own: Exception | None) -> list[str]:
    """Of every process, what failed there; empty for nothing."""
    if jax.process_count() == 1:
        return []
    text = b"" if own is None else (str(own) or type(own).__name__).encode()[:_REASON_BYTES]
    row = np.frombuffer(text.ljust(_REASON_BYTES, b"\0"), np.uint8)  # of one length for all
    rows = multihost_utils.process_allgather(row)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def end_if_several(status: int) -> None:
    """Leave a run of several processes at once: waiting for the others, as jax does at exit, is in vain when
    they wait for this one."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def meet(name: str) -> None:
    """Wait for all processes, in any thread: through their coordinator, as collectives belong to the main one."""
    if jax.process_count() > 1:
        asyncio.run(ocp.multihost.sync_global_processes(name, operation_id="checkpoint"))


def tell_failure(what: str, reason: str) -> None:
    """Let the others know at once, also those that wait for this process; `what` is told once."""
    if jax.process_count() > 1:
        _coordinator().key_value_set(f"vr1_jax/failed/{what}/{jax.process_index()}", reason, allow_overwrite=True)


def unless_one_fails(what: str, work: Callable[[], None]) -> None:
    """Do `work`, in which processes wait for each other, until it ends or one of them has told of a failure.

    Work that is given up is left to end by itself: it sits at a barrier that not all will reach.
    """
    if jax.process_count() == 1:
        work()
        return
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, daemon=True).start()  # a daemon: the program may end before a given-up barrier
    while not wait_for([done], _ASK_EVERY).done:
        for key, reason in _coordinator().key_value_dir_get(f"vr1_jax/failed/{what}/"):
            raise UserError(f"process {key.rpartition('/')[2]}: {reason}")
    done.result()


def _coordinator():
    """The key-value store that jax's processes share; jax has no public name for it."""
    from jax._src.distributed import global_state

    return global_state.client


def mean(metrics: dict[str, float]) -> dict[str, float]:
    """The mean over processes, which judged equally many rows each."""
    if jax.process_count() == 1:
        return metrics
    names = sorted(metrics)
    table = multihost_utils.process_allgather(np.array([metrics[name] for name in names]))
    return dict(zip(names, table.mean(axis=0).tolist(), strict=True))


def gather(values: np.ndarray) -> np.ndarray:
    """Rows of all processes, one behind the other; each process has as many."""
    if jax.process_count() == 1:
        return values
    table = multihost_utils.process_allgather(values)
    return table.reshape(-1, *values.shape[1:])


# A polite end: the first SIGTERM asks the loop to save and leave, the second one kills.


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
