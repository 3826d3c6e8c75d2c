"""Parameters, FLOPs and bytes by formula: what a step costs before it is run, and the floor of its time.

    rollout     two orders of frames read, then an answer decoded token by token in every row
    reference   one forward pass over the prompt and all its answers
    update      that, and its backward pass
    sft         an update with one answer to each prompt

One multiplication and one addition are two FLOPs; only matrix products count, which is all but one or two
percent of wide models. Attention counts every score that is computed, hidden by a mask or not. The prompt is
counted once for all its answers, for it is computed once. Everything is for the padded shapes of a whole step,
on all devices together.
"""

from dataclasses import dataclass, replace

from vr1_jax.models import attention
from vr1_jax.models.config import ModelConfig, TextConfig, VisionConfig


@dataclass(frozen=True)
class Workload:
    """The padded shapes of one step; the letters are those of `vr1_jax.types`."""

    prompts: int  # B
    slices: int  # M, of each prompt
    patches: int  # P, of each slice
    tokens: int  # T, of each prompt
    group: int  # G
    answer: int  # C, of each answer
    shuffled_group: int = 0  # further answers of the rollout, to the same prompt with its frames shuffled

    @property
    def rows(self) -> int:
        """Answers that are sampled at once."""
        return self.prompts * (self.group + self.shuffled_group)

    @property
    def orders(self) -> int:
        """Orders of frames of a prompt that are read for sampling."""
        return 2 if self.shuffled_group else 1


@dataclass(frozen=True)
class Parameters:
    vision: int
    text: int  # the decoder's layers and its last norm
    embedding: int
    head: int  # 0 where the embedding serves as head too

    @property
    def total(self) -> int:
        return self.vision + self.text + self.embedding + self.head


def count_parameters(config: ModelConfig) -> Parameters:
    vision, text = config.vision, config.text
    width, merged = vision.width, vision.width * vision.merge**2
    vision_biases = 3 * width + width + 2 * vision.mlp + width
    vision_layer = _vision_matrices(vision) + vision_biases + 2 * width
    merger = width + merged * (merged + 1) + (merged + 1) * vision.out_width
    text_biases = (text.heads + 2 * text.kv_heads) * text.head_dim
    text_layer = _text_matrices(text) + text_biases + 2 * text.width
    return Parameters(
        vision=vision.patch_values * width + vision.layers * vision_layer + merger,
        text=text.layers * text_layer + text.width,
        embedding=text.vocab * text.width,
        head=0 if text.tied else text.vocab * text.width,
    )


def see(config: VisionConfig, work: Workload) -> int:
    """The vision tower over all slices. Window attention is full attention under a mask, and costs as much."""
    of_slice = _embed(config, work) + _vision_layers(config, work) + _merge(config, work)
    return work.prompts * work.slices * of_slice


def prefill(config: ModelConfig, work: Workload) -> int:
    """The decoder over the prompts, vision tower not included."""
    return work.prompts * _text_layers(config.text, work.tokens, attention.causal_scores(work.tokens))


def answers(config: ModelConfig, work: Workload) -> int:
    """The decoder over `group` whole answers to each prompt, which are in the cache or in the same pass."""
    tokens = work.group * work.answer
    return work.prompts * _text_layers(config.text, tokens, tokens * (work.tokens + work.answer))


def project(config: TextConfig, tokens: int) -> int:
    """Hidden states to scores of the vocabulary."""
    return 2 * tokens * config.width * config.vocab


def decode(config: ModelConfig, work: Workload, slots: int) -> int:
    """One more token in every row that samples, its scores included, with `slots` of the answers' cache read."""
    rows = work.rows
    return _text_layers(config.text, rows, rows * (work.tokens + slots)) + project(config.text, rows)


def rollout(config: ModelConfig, work: Workload) -> int:
    """Answers of full length. The first token needs no decoding; slots that are not written yet do not count."""
    read = work.orders * (see(config.vision, work) + prefill(config, work)) + project(config.text, work.rows)
    return read + sum(decode(config, work, written) for written in range(1, work.answer))


def reference(config: ModelConfig, work: Workload) -> int:
    scored = work.prompts * work.group * work.answer
    return see(config.vision, work) + prefill(config, work) + answers(config, work) + project(config.text, scored)


def update(
    config: ModelConfig,
    work: Workload,
    *,
    remat: bool = False,
    trains_vision: bool = True,
    adapters_only: bool = False,
) -> int:
    """Forward and backward, which is twice the forward but for the pixels, or a whole frozen tower: no gradient.

    `adapters_only`: matrices have no gradients of their own; what the adapters compute is not counted.
    `remat` adds what the backward pass computes again. Leave it out for the model FLOPs that MFU divides by.
    """
    pixels = work.prompts * work.slices * _embed(config.vision, work)
    forward_only = pixels if trains_vision else 2 * see(config.vision, work)
    again = _recomputed(config, work, trains_vision) if remat else 0
    frozen = _by_matrices(config, work, trains_vision) if adapters_only else 0
    return 3 * reference(config, work) - forward_only - frozen + again


def _by_matrices(config: ModelConfig, work: Workload, sees: bool) -> int:
    """The forward pass's products with matrices that adapters stand beside, or that lie after them."""
    text, vision, scored = config.text, config.vision, work.prompts * work.group * work.answer
    of_text = 2 * text.layers * _text_matrices(text) * (work.prompts * work.tokens + scored)
    of_slice = 2 * vision.layers * work.patches * _vision_matrices(vision) + _merge(vision, work)
    return of_text + project(text, scored) + (work.prompts * work.slices * of_slice if sees else 0)


def sft(config: ModelConfig, work: Workload, *, remat: bool = False) -> int:
    return update(config, replace(work, group=1), remat=remat)


def optimizer_bytes(config: ModelConfig) -> int:
    """AdamW in fp32 reads weights, gradients and both moments, and writes all but the gradients."""
    return 7 * 4 * count_parameters(config).total


def decode_bytes(config: ModelConfig, work: Workload, slots: int, *, bytes_per_value: int = 2) -> int:
    """What must be read for one more token in every row: the decoder's weights, the head, and both caches.

    All rows of one order of frames share the prompt's keys and values, which are read once.
    """
    text, parameters = config.text, count_parameters(config)
    weights = parameters.text + text.vocab * text.width + work.rows * text.width
    cached = work.prompts * work.orders * work.tokens + work.rows * slots
    return bytes_per_value * (weights + cached * cache_values(text))


def rollout_bytes(config: ModelConfig, work: Workload, *, bytes_per_value: int = 2) -> int:
    """What decoding answers of full length must read; reading the prompts is a matter of FLOPs."""

    def step(written: int) -> int:
        return decode_bytes(config, work, written, bytes_per_value=bytes_per_value)

    return sum(map(step, range(1, work.answer)))


def cache_values(config: TextConfig) -> int:
    """Numbers in the keys and values of one token, over all layers."""
    return 2 * config.layers * config.kv_heads * config.head_dim


def _vision_matrices(config: VisionConfig) -> int:
    """Numbers in the matrices of one layer; each multiplies every patch."""
    return 4 * config.width**2 + 3 * config.width * config.mlp


def _text_matrices(config: TextConfig) -> int:
    heads = 2 * config.heads + 2 * config.kv_heads
    return config.width * heads * config.head_dim + 3 * config.width * config.mlp


def _embed(config: VisionConfig, work: Workload) -> int:
    return 2 * work.patches * config.patch_values * config.width


def _vision_layers(config: VisionConfig, work: Workload) -> int:
    attention = 4 * work.patches**2 * config.width
    return config.layers * (2 * work.patches * _vision_matrices(config) + attention)


def _merge(config: VisionConfig, work: Workload) -> int:
    merged = config.width * config.merge**2
    return 2 * (work.patches // config.merge**2) * merged * (merged + config.out_width)


def _text_layers(config: TextConfig, tokens: int, scores: int) -> int:
    """`tokens` through all layers, with so many (query, key) pairs of attention in each head."""
    attention = 4 * scores * config.heads * config.head_dim
    return config.layers * (2 * tokens * _text_matrices(config) + attention)


def _recomputed(config: ModelConfig, work: Workload, trains_vision: bool) -> int:
    """Layers are computed again but for their last product, and so are the scores of the vocabulary."""
    vision, text = config.vision, config.text
    seen = work.prompts * work.slices if trains_vision else 0
    tokens = work.prompts * (work.tokens + work.group * work.answer)
    last_products = 2 * (
        vision.layers * seen * work.patches * vision.mlp * vision.width
        + text.layers * tokens * text.mlp * text.width
    )
    layers = seen * _vision_layers(vision, work) + prefill(config, work) + answers(config, work)
    return layers - last_products + project(text, work.prompts * work.group * work.answer)
