"""Held-out questions during a run: how many are answered rightly, and what the answers depend on.

Each question is answered three ways: with its frames in order, with them shuffled (videos), and blindly, every
frame blanked. Who does as well blindly guesses from the question; who does as well on shuffled frames does not
use their order.
"""

import dataclasses
import logging
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import numpy as np

from vr1_jax.config import TrainConfig
from vr1_jax.data.pipeline import Batch, Pipeline
from vr1_jax.data.sources import KINDS
from vr1_jax.models.base import Model
from vr1_jax.rewards.scoring import score_groups
from vr1_jax.rl.experience import texts
from vr1_jax.sampling.sampler import place_prompt, rollout_params
from vr1_jax.sharding import local_rows, place_rows
from vr1_jax.training import processes
from vr1_jax.training.setup import Program
from vr1_jax.training.steps import cast, score_batch

log = logging.getLogger("vr1_jax")

_BLANK = 127  # grey: near the mean that pixels are normalised with
_MOST_SOURCES = 20  # more are not worth a curve each


@dataclass(frozen=True)
class Table:
    """One row for each held-out record, of all processes; means over its answers."""

    record: np.ndarray
    kind: np.ndarray  # index into KINDS
    accuracy: np.ndarray
    well_formed: np.ndarray
    shuffled: np.ndarray  # accuracy; nan where there is no order to lose
    blind: np.ndarray  # accuracy; nan where there is nothing to see
    loss: np.ndarray  # summed over the answer's tokens; 0 unless supervised
    tokens: np.ndarray


def evaluate(config: TrainConfig, program: Program, model: Model) -> dict[str, float]:
    """Every held-out record once."""
    if program.heldout is None:
        return {}
    table = _answered(config, program, model)
    metrics = _accuracy("heldout_accuracy", table.accuracy)
    metrics["heldout_format"] = float(table.well_formed.mean())
    metrics["heldout_refused"] = float(len(program.heldout.records) - len(table.record))
    for number, name in enumerate(KINDS):
        metrics |= _accuracy(f"heldout_accuracy_{name}", table.accuracy[table.kind == number])
    metrics |= _accuracy("heldout_accuracy_shuffled", table.shuffled[~np.isnan(table.shuffled)])
    seen = ~np.isnan(table.blind)
    metrics |= _accuracy("heldout_accuracy_blind", table.blind[seen])
    if seen.any():
        _warn_of_blindness(table.accuracy[seen] - table.blind[seen])
    sources = np.array([_source(program.heldout, int(record)) for record in table.record])
    if 1 < len(names := np.unique(sources)) <= _MOST_SOURCES:
        for name in names:
            metrics |= _accuracy(f"heldout_accuracy/{name}", table.accuracy[sources == name])
            shuffled = table.shuffled[sources == name]
            metrics |= _accuracy(f"heldout_accuracy_shuffled/{name}", shuffled[~np.isnan(shuffled)])
    if table.tokens.any():
        metrics["heldout_loss"] = float(table.loss.sum() / table.tokens.sum())
    return metrics


def _answered(config: TrainConfig, program: Program, model: Model) -> Table:
    policy = rollout_params(model, program.meshes.rollout, config.compute_dtype)
    drawn = config.rollout.sampling
    if not config.watch.evaluate_answers:
        drawn = dataclasses.replace(drawn, temperature=0.0)
    scored_model = cast(model, config.compute_dtype) if config.stage == "sft" else None
    rows: list[np.ndarray] = []
    with program.heldout.batches(workers=config.data.workers) as batches:
        for _ in range(program.heldout.steps_per_epoch):
            batch = next(batches)
            program.heldout_refused.add(batch.refusals, served=0)
            views = _views(batch)
            groups = (config.watch.evaluate_answers or 1,) * len(views)
            answers = program.sampler(policy, list(views.values()), groups, drawn, batch.row_ids, batch.step)
            read = [texts(answer, program.tokenizer.decode).texts for answer in answers]
            columns = _judged(dict(zip(views, read, strict=True)), batch, config.grpo.rules)
            loss, tokens = (
                _loss(scored_model, batch, config, program)
                if scored_model is not None
                else np.zeros((2, len(batch.rows)))
            )
            rows.append(processes.gather(np.stack([*columns, loss, tokens], axis=1)))
    table = np.concatenate(rows)
    # The last batch of an epoch is filled up from the next: every record counts once.
    _, first = np.unique(table[:, 0], return_index=True)
    return Table(*table[first].T)


def _views(batch: Batch) -> dict[str, dict[str, np.ndarray]]:
    views = {"ordered": batch.ordered}
    if batch.shuffled is not None:
        views["shuffled"] = batch.shuffled
    if batch.kind != "text":
        views["blind"] = batch.ordered | {"patches": np.full_like(batch.ordered["patches"], _BLANK)}
    return views


def _judged(answers: dict[str, list[list[str]]], batch: Batch, rules: str) -> list[np.ndarray]:
    """The first columns of `Table`."""
    samples = [SimpleNamespace(**row) for row in batch.rows]
    scores = {name: score_groups(rows, samples, rules=rules) for name, rows in answers.items()}
    missing = np.full(len(samples), np.nan)
    return [
        np.array([sample.record for sample in samples]),
        np.full(len(samples), KINDS.index(batch.kind)),
        scores["ordered"].accuracy.mean(1),
        scores["ordered"].format.mean(1),
        *(scores[name].accuracy.mean(1) if name in scores else missing for name in ("shuffled", "blind")),
    ]


def _loss(model: Model, batch: Batch, config: TrainConfig, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Summed negative log-probs of the right answers, and how many tokens they have."""
    mesh = program.meshes.train
    with jax.set_mesh(mesh):
        prompt, tokens = place_prompt(batch.ordered, mesh), place_rows(batch.answers["tokens"][:, None], mesh)
        scores = score_batch(model, prompt, tokens, microbatches=config.microbatches)
    counted = batch.answers["mask"]
    return -np.where(counted, local_rows(scores.logps)[:, 0], 0.0).sum(-1), counted.sum(-1)


def _accuracy(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean and its standard error."""
    if not len(values):
        return {}
    return {name: float(values.mean()), f"{name}_error": float(values.std() / np.sqrt(max(len(values) - 1, 1)))}


def _warn_of_blindness(gains: np.ndarray) -> None:
    gain = _accuracy("gain", gains)
    if gain["gain"] <= 2 * gain["gain_error"]:  # with neither right anywhere: both 0
        log.warning(
            "held-out answers are hardly better than blind ones (by %.3f, standard error %.3f): what is shown "
            "does not matter to them",
            *gain.values(),
        )


def _source(pipeline: Pipeline, record: int) -> str:
    source, index = pipeline.records.locate(record)
    return source.records[index].data_source
