"""Held-out questions during a run: accuracy with its standard error, and how much needs the order of frames."""

from types import SimpleNamespace

import numpy as np

from vr1_jax.config import TrainConfig
from vr1_jax.data.sources import KINDS
from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.rewards.scoring import score_groups
from vr1_jax.rl.experience import texts
from vr1_jax.sampling.generate import SamplingConfig
from vr1_jax.sampling.placement import rollout_params
from vr1_jax.training import processes
from vr1_jax.training.setup import Program


def evaluate(config: TrainConfig, program: Program, model: Qwen25VL) -> dict[str, float]:
    """Every held-out record once: greedy answers to ordered and, for videos, to shuffled frames."""
    if program.heldout is None:
        return {}
    policy = rollout_params(model, program.meshes.rollout, config.compute_dtype)
    greedy = SamplingConfig(max_new_tokens=config.rollout.sampling.max_new_tokens, temperature=0.0)
    rows: list[np.ndarray] = []
    pipeline = program.heldout
    with pipeline.batches(workers=0) as batches:
        for _ in range(pipeline.steps_per_epoch):
            batch = next(batches)
            arrays = [part for part in (batch.ordered, batch.shuffled) if part is not None]
            groups = (1,) * len(arrays)
            answers = program.sampler(policy, arrays, groups, greedy, batch.row_ids, 0)
            samples = [SimpleNamespace(**row) for row in batch.rows]
            scored = [
                score_groups(texts(a, program.tokenizer.decode)[0], samples, rules=config.grpo.rules)
                for a in answers
            ]
            shuffled = scored[1].accuracy[:, 0] if len(scored) > 1 else np.full(len(samples), np.nan)
            about = [(sample.record, KINDS.index(batch.kind)) for sample in samples]
            tables = (np.array(about), scored[0].accuracy, scored[0].format, shuffled[:, None])
            rows.append(processes.gather(np.concatenate(tables, axis=1)))
    table = np.concatenate(rows)
    # The last batch of an epoch is filled up from the next: every record counts once.
    _, first = np.unique(table[:, 0], return_index=True)
    _, kind, accuracy, well_formed, shuffled = table[first].T
    metrics = {
        "heldout_accuracy": float(accuracy.mean()),
        "heldout_accuracy_error": float(accuracy.std() / np.sqrt(max(len(accuracy) - 1, 1))),
        "heldout_format": float(well_formed.mean()),
    }
    for number, name in enumerate(KINDS):
        if (kind == number).any():
            metrics[f"heldout_accuracy_{name}"] = float(accuracy[kind == number].mean())
    if not np.isnan(shuffled).all():
        metrics["heldout_accuracy_shuffled"] = float(np.nanmean(shuffled))
    return metrics
