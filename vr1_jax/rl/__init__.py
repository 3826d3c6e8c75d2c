"""Reinforcement learning: read advantages, then loss, then experience."""

from vr1_jax.rl.advantages import group_advantages, length_bonus, temporal_bonus
from vr1_jax.rl.loss import policy_loss

__all__ = ["group_advantages", "length_bonus", "policy_loss", "temporal_bonus"]
