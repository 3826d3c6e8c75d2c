"""How many rows of a batch one device has memory for: an estimate, made to stay on the safe side."""

from collections.abc import Callable

import jax

from vr1_jax.evaluation.batching import Size
from vr1_jax.evaluation.chat_model import ChatModel
from vr1_jax.models.config import ModelConfig

MOST_ROWS = 32
SHARE = 0.6  # of what the weights leave free
SCORE_BYTES = 10  # float32 scores of attention, their softmax in float32, and its copy in bfloat16
QUERIES_AT_ONCE = 1024  # of a prompt, whose scores against all keys exist at the same time


def rows_per_device(chat: ChatModel, chosen: int | None = None) -> Callable[[Size], int]:
    """The most rows of a size on one device: as chosen, or by its free memory; where that is unknown, few."""
    if chosen is not None:
        return lambda size: power_of_two(chosen)
    free = _free_bytes(chat)
    if free is None:
        return lambda size: size.rows
    return lambda size: power_of_two(
        min(MOST_ROWS, SHARE * free // row_bytes(size, chat.config, chat.dtype.itemsize))
    )


def row_bytes(size: Size, config: ModelConfig, itemsize: int) -> int:
    """What sampling an answer to one prompt needs besides the weights."""
    text, vision, bucket = config.text, config.vision, size.bucket
    cache = (bucket.tokens + size.answer) * text.layers * 2 * text.kv_heads * text.head_dim * itemsize
    patches = bucket.slices * bucket.patches
    return (
        2 * cache
        + bucket.tokens * (3 * text.mlp + 8 * text.width) * itemsize
        + text.heads * min(QUERIES_AT_ONCE, bucket.tokens) * bucket.tokens * SCORE_BYTES
        + patches * (3 * vision.mlp + 8 * vision.width + 5 * vision.patch_values) * itemsize
        + vision.heads * patches * bucket.patches * SCORE_BYTES
    )


def power_of_two(most: int | float) -> int:
    """The largest that is not above `most`, at least 1."""
    return 1 << (max(1, int(most)).bit_length() - 1)


def _free_bytes(chat: ChatModel) -> int | None:
    devices = jax.local_devices() if chat.mesh is None else chat.mesh.local_devices
    found = [device.memory_stats() for device in devices]
    if not all(stats and "bytes_limit" in stats for stats in found):
        return None
    return min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in found)
