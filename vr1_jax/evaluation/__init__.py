"""Benchmarks: scoring and running."""

from vr1_jax.evaluation.scoring import score_sample

__all__ = ["score_sample"]
