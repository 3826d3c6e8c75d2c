"""Runs of several processes: joining them, and the few numbers they exchange on the host."""

import importlib.util
import os

import jax
import numpy as np
from jax.experimental import multihost_utils


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the run's processes: by the arguments, else as the environment says, else there is only this one.

    SLURM, Open MPI and TPU pods are recognised by jax from what they set.
    On Kubernetes an indexed job sets JOB_COMPLETION_INDEX; VR1_PROCESSES and VR1_COORDINATOR (the first pod's
    host:port) must be set by its manifest.
    """
    if coordinator is None and "VR1_COORDINATOR" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        coordinator = os.environ["VR1_COORDINATOR"]
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


def wait(name: str) -> None:
    """For all processes to come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


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
