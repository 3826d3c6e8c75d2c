"""Rewards: plain Python on strings."""

from vr1_jax.rewards.accuracy import accuracy_reward, format_reward
from vr1_jax.rewards.scoring import Scores, score_groups

__all__ = ["Scores", "accuracy_reward", "format_reward", "score_groups"]
