"""Checkpoints of a run: saved while the next step computes, whole or not at all, checked before use.

RUN/checkpoints/STEP/
  params/           the model, by plain names: what `load_model` and the export read; of a LoRA run the adapters
  trainer/          optimizer state and counters
  progress.json     step, position in the data, metrics, config of the run
  checksums.*.json  of all files above

A save has three phases. `save` copies the arrays to the host; a thread writes them as STEP.saving and adds
checksums; the rename to STEP makes it a checkpoint. Whatever a killed run leaves under other names is
cleared away when the next one opens the directory.
"""

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import nnx
from jax.experimental import multihost_utils

from vr1_jax.config import CheckpointConfig
from vr1_jax.config_files import check_config
from vr1_jax.errors import UserError
from vr1_jax.files import flush, out_of_space, read_json
from vr1_jax.models.adapters import has_adapters, is_adapter
from vr1_jax.models.mapping import nest
from vr1_jax.training import processes
from vr1_jax.training.checkpoint_files import (
    aside,
    clear_leftovers,
    damage,
    numbered,
    remove,
    set_aside,
    write_checksums,
)
from vr1_jax.types import TrainState
from vr1_jax.weights.array_store import save_context
from vr1_jax.weights.checkpoint_dir import PARAMS, STEPS, step_directory

TRAINER = "trainer"
PROGRESS = "progress.json"
_SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # ours and tensorstore's, and jax's at a barrier
_numbers = itertools.count(1)  # of saves: names that processes meet under are used once

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    state: TrainState
    data_state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory. All processes of a run make the same calls in the same order.

    `run_config` is saved with each; `restore` refuses where it disagrees in anything but the `harmless` fields.
    """

    def __init__(
        self, run: Path, config: CheckpointConfig, run_config: dict[str, Any], *, harmless: Collection[str] = ()
    ):
        self._run, self._config = run.resolve(), config
        self._run_config, self._harmless = run_config, harmless
        logging.getLogger("absl").addFilter(_not_orbax_error)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._newest: int | None = None  # last step saved, being saved, or restored
        self._failure: BaseException | None = None  # of the last save
        self.failed_saves = 0
        self.restored_metrics: dict[str, float] = {}
        if _is_first_process():
            (self._run / STEPS).mkdir(parents=True, exist_ok=True)
            clear_leftovers(self._run / STEPS)

    def due(self, step: int) -> bool:
        return step % self._config.every == 0

    def save(self, state: TrainState, data_state: dict[str, Any], metrics: Mapping[str, SupportsFloat]) -> None:
        """Copy the state to the host and return; the files are written meanwhile.

        Only one save is under way at a time, so that the host never holds two copies. A save that fails is
        logged and counted, the run goes on, and the checkpoints before it stay as they are.
        """
        step = int(state.step)
        self._settle()
        if step == self._newest:
            return
        directory = step_directory(self._run, step)
        if directory.exists():
            raise UserError(f"{directory}: exists; resume that run, or use another directory")
        if _is_first_process():
            clear_leftovers(directory.parent)  # of a failed save, whose last writers came after its end
        values = {name: float(value) for name, value in metrics.items()}
        content = {"step": step, "metrics": values, "data": data_state, "config": self._run_config}
        if self._config.keep_best and self._best_metric not in values:
            logger.warning("step %d cannot be among the best: it has no metric %s", step, self._best_metric)
        progress = json.dumps(content, indent=2)  # now: the caller's objects change while the thread writes
        self._newest, self._failure, number = step, None, next(_numbers)
        try:
            with save_context():
                response = ocp.save_checkpointables_async(aside(directory), _trees(_saved(state)))
        except _SAVE_ERRORS as error:
            processes.tell_failure(f"save {number}", _reason(error))
            self._fail(directory, error)
        else:
            self._pending = self._thread.submit(self._finish, directory, response.result, progress, number)

    def wait(self) -> None:
        """Until the last save is on disk; raises UserError if it failed."""
        self._settle()
        if self._failure is not None:
            raise UserError(
                f"{self._run}: the last checkpoint could not be saved: {_reason(self._failure)}"
            ) from self._failure

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
        else:  # the error to see is the one that ended the run; a failed save was logged
            self._thread.shutdown()

    def restore(self, like: TrainState) -> Restored | None:
        """The newest undamaged checkpoint, placed as `like` (abstract) says; None when there is none at all."""
        damaged: list[Path] = []
        for step in reversed(numbered(self._run / STEPS)):
            directory = step_directory(self._run, step)
            if not _is_damaged(directory):
                break
            damaged.append(directory)
        else:
            if damaged:
                names = ", ".join(path.name for path in damaged)
                raise UserError(f"{self._run / STEPS}: all checkpoints are damaged ({names}); see the log")
            return None
        progress = read_json(directory / PROGRESS)
        check_config(progress["config"], self._run_config, self._harmless, run=self._run)
        state = _load(directory, like)
        if _is_first_process():
            for other in damaged:
                set_aside(other)
        if damaged:
            logger.warning("resuming from step %d, the newest undamaged checkpoint of %s", step, self._run)
        self._newest, self.restored_metrics = step, progress["metrics"]
        return Restored(state, progress["data"])

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, directory: Path, written: Callable[[], None], progress: str, save: int) -> None:
        def work() -> None:
            written()
            _complete(directory, progress, save)

        try:
            processes.unless_one_fails(f"save {save}", work)
        except _SAVE_ERRORS as error:
            processes.tell_failure(f"save {save}", _reason(error))
            self._fail(directory, error)
        else:
            if _is_first_process():
                self._remove_surplus()

    def _fail(self, directory: Path, error: BaseException) -> None:
        self._newest, self._failure = None, error
        self.failed_saves += 1
        if _is_first_process():
            clear_leftovers(directory.parent)
        available = numbered(directory.parent)
        kept = f"the newest checkpoint is that of step {available[-1]}" if available else "there is no other"
        logger.warning("step %s was not saved: %s; the run goes on, %s", directory.name, _reason(error), kept)

    def _remove_surplus(self) -> None:
        available = numbered(self._run / STEPS)
        keep = set(available[-self._config.keep_last :])
        if self._config.keep_best:
            ranked = sorted(available, key=lambda step: (self._goodness(step), step))
            keep |= {step for step in ranked[-self._config.keep_best :] if self._goodness(step) > -math.inf}
        for step in set(available) - keep:
            try:
                remove(step_directory(self._run, step))
            except OSError as error:
                logger.warning("the checkpoint of step %d, no longer wanted, cannot be removed: %s", step, error)

    @property
    def _best_metric(self) -> str:
        return self._config.best_metric.removeprefix("-")

    def _goodness(self, step: int) -> float:
        """-inf for a checkpoint without the metric: it is never among the best."""
        try:
            value = read_json(step_directory(self._run, step) / PROGRESS)["metrics"][self._best_metric]
        except (UserError, KeyError):
            return -math.inf
        if math.isnan(value):
            return -math.inf
        return -value if self._config.best_metric.startswith("-") else value


def _saved(state: TrainState) -> TrainState:
    """Of a LoRA run the adapters, without the model that they belong to."""
    if not has_adapters(state.model):
        return state

    def is_kept(path: tuple[Any, ...]) -> bool:
        return is_adapter(path) or not jax.tree_util.keystr(path).startswith(".model.")

    return jax.tree.map_with_path(lambda path, x: x if is_kept(path) else None, state)


def _trees(state: TrainState) -> dict[str, dict[str, Any]]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {PARAMS: nest(_leaves(fields.pop("model"))), TRAINER: nest(_leaves(fields))}


def _load(directory: Path, like: TrainState) -> TrainState:
    """Of a LoRA run with None in place of the model that it adapts."""
    like = _saved(like)
    try:
        loaded = ocp.load_checkpointables(directory, _trees(like))
    except (ValueError, KeyError) as error:
        raise UserError(f"{directory}: does not fit this model and optimizer: {_reason(error)}") from error
    fields = {"model": loaded[PARAMS], **loaded[TRAINER]}
    arrays = _leaves(fields)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in _leaves(like)])


def _leaves(tree: Any) -> dict[str, Any]:
    """Dotted name -> array, in the order of the tree's leaves; also through modules in optimizer state."""
    nodes = jax.tree.leaves_with_path(tree, is_leaf=_is_variable)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): node.get_value() if _is_variable(node) else node
        for path, node in nodes
        if jax.tree.leaves(node)  # a frozen parameter has no moments
    }


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _complete(directory: Path, progress: str, save: int) -> None:
    """Make a checkpoint of what Orbax has written aside; nobody sees it before it is whole and on disk."""
    partial = aside(directory)
    if _is_first_process():
        (partial / PROGRESS).write_text(progress, encoding="utf-8")
    processes.meet(f"written {save}")
    write_checksums(partial, jax.process_index(), jax.process_count())
    processes.meet(f"checked {save}")
    if _is_first_process():
        flush(partial, *(path for path in partial.rglob("*") if path.is_dir()))  # their files are flushed
        partial.rename(directory)
        flush(directory.parent)
    processes.meet(f"complete {save}")


def _is_first_process() -> bool:
    return jax.process_index() == 0


def _is_damaged(directory: Path) -> bool:
    """Whether any process found damage in its share of the files."""
    finding = damage(directory, jax.process_index(), jax.process_count())
    if finding:
        logger.warning("checkpoint %s is damaged: %s", directory, finding)
    if jax.process_count() == 1:
        return finding is not None
    return bool(multihost_utils.process_allgather(np.array(finding is not None)).any())


def _not_orbax_error(record: logging.LogRecord) -> bool:
    """Orbax logs each error from several threads, with stacks, before it raises it for us to report."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _reason(error: BaseException) -> str:
    return "the disk is full" if out_of_space(error) else str(error).partition("\n")[0]
