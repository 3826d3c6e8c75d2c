"""Video-R1 in JAX: T-GRPO reinforcement learning for Qwen2.5-VL on a device mesh."""
