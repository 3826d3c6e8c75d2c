"""Held-out questions during a run: accuracy with its standard error, and how much needs the order of frames."""

from types import SimpleNamespace

import numpy as np

from vr1_jax.config import TrainConfig
from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.rewards.scoring import score_groups
from vr1_jax.rl.experience import texts
from vr1_jax.sampling.generate import SamplingConfig
from vr1_jax.sampling.placement import rollout_params
from vr1_jax.training.setup import Program


def evaluate(config: TrainConfig, program: Program, model: Qwen25VL) -> dict[str, float]:
    """Every held-out record once: greedy answers to ordered and, for videos, to shuffled frames."""
    if program.heldout is None:
        return {}
    policy = rollout_params(model, program.meshes.rollout, config.compute_dtype)
    greedy = SamplingConfig(max_new_tokens=config.rollout.sampling.max_new_tokens, temperature=0.0)
    seen: set[int] = set()
    accuracy: dict[str, list[float]] = {"video": [], "image": [], "text": [], "shuffled": []}
    well_formed: list[float] = []
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
            for row, sample in enumerate(samples):
                if sample.record in seen:
                    continue  # the last batch of an epoch is filled up from the next
                seen.add(sample.record)
                accuracy[batch.kind].append(float(scored[0].accuracy[row, 0]))
                well_formed.append(float(scored[0].format[row, 0]))
                if len(scored) > 1:
                    accuracy["shuffled"].append(float(scored[1].accuracy[row, 0]))
    metrics = {f"heldout_accuracy_{kind}": float(np.mean(x)) for kind, x in accuracy.items() if x}
    everything = accuracy["video"] + accuracy["image"] + accuracy["text"]
    metrics["heldout_accuracy"] = float(np.mean(everything))
    metrics["heldout_accuracy_error"] = float(np.std(everything, ddof=1) / np.sqrt(len(everything)))
    metrics["heldout_format"] = float(np.mean(well_formed))
    return metrics
