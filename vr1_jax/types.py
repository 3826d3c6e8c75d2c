"""The arrays that flow through the program: the architecture on one page.

Axis legend, used verbatim in every annotation and einsum:

    B prompts            T prompt tokens        M temporal slices      L layers          D model width
    G generations        C completion tokens    P patches per slice    N query heads     F mlp width
                         S cache slots          R values per patch     K kv heads        V vocabulary
                                                U merged visual units  H head width

A *slice* is two frames (an image counts as one slice, doubled). A *unit* is a 2x2 block of patches after
the merger: one visual token. Everything ragged is settled on the host in numpy (`vr1_jax.data`); the
device sees the fixed shapes below, so a batch of the same bucket never recompiles.

Data flow:  Prompt --generate--> Completion --score--> Experience --grpo_step--> TrainState
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Frozen dataclass and jax pytree, every field a child.

    Unflattening bypasses `__init__`: inside jax the leaves may be tracers, shardings or None, which the
    shape checks of the tests would refuse. Building an instance by hand is still checked.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(x):
        return [(jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in names], None

    def unflatten(_, children):
        x = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(x, name, child)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@pytree
class Prompt:
    """A batch of prompts as the model sees them; `data.collate` builds one of the same names in numpy.

    Prompts are left-padded: the last token of every row is real text, so generation starts at slot T for
    all rows. Visual units are numbered within a prompt, row-major over (slice, unit): unit u of slice m is
    m * P/4 + u. Four consecutive patches make one unit.

        slot:          0    1    2           3        4        5         6         7
        tokens:        pad  pad  <vis_start> <image>  <image>  <vis_end> What      ?
        mask:          0    0    1           1        1        1         1         1
        visual_slots:  -1   -1   -1          0        1        -1        -1        -1
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    positions: Int[Array, "B 3 T"]  # (time, row, column) of mRoPE
    visual_slots: Int[Array, "B T"]  # which visual unit fills this token, -1 for text
    patches: UInt8[Array, "B M P R"]  # pixels in HF patch order, normalised on the device
    patch_coords: Int[Array, "B M P 2"]  # (row, column) within the slice's grid
    patch_windows: Int[Array, "B M P"]  # attention window within the slice, -1 for padding

    @property
    def next_position(self) -> Int[Array, " B"]:
        """mRoPE position of the first completion token: one after the last prompt token, on every axis."""
        return self.positions[:, 0, -1] + 1


def blank_prompt(batch: int, *, slices: int, patches: int, tokens: int, values: int = 1176) -> Prompt:
    """A prompt of one bucket's shape with nothing in it: to compile, plan and time with."""
    return Prompt(
        tokens=jnp.zeros((batch, tokens), jnp.int32),
        mask=jnp.ones((batch, tokens), bool),
        positions=jnp.zeros((batch, 3, tokens), jnp.int32),
        visual_slots=jnp.full((batch, tokens), -1, jnp.int32),
        patches=jnp.zeros((batch, slices, patches, values), jnp.uint8),
        patch_coords=jnp.zeros((batch, slices, patches, 2), jnp.int32),
        patch_windows=jnp.zeros((batch, slices, patches), jnp.int32),
    )


@pytree
class Completion:
    """Answers, right-padded: G to each prompt. `mask` covers the closing stop token, if one came in time."""

    tokens: Int[Array, "B G C"]
    mask: Bool[Array, "B G C"]
    logps: Float[Array, "B G C"]  # as sampled, under the full softmax at temperature 1
    stopped: Bool[Array, "B G"]  # by a stop token, not by the length limit
    truncated_logps: Float[Array, "B G C"] | None = None  # under what was sampled from; only on request


@pytree
class KVCache:
    """Rotated keys and values of a group's completions, an array for each layer.

    Slots come last in keys and before the width in values: so both lie as decoding multiplies them. Any other
    order is copied for every token.
    """

    keys: tuple[Float[Array, "B G K H S"], ...]
    values: tuple[Float[Array, "B G K S H"], ...]


@pytree
class PromptCache:
    """All that completions need of a prompt once it has been read."""

    keys: tuple[Float[Array, "B K H T"], ...]
    values: tuple[Float[Array, "B K T H"], ...]
    mask: Bool[Array, "B T"]
    next_position: Int[Array, " B"]


@pytree
class Experience:
    """A batch of answers with all that its policy update needs."""

    prompt: Prompt
    completion: Completion
    advantages: Float[Array, "B G"]
    ref_logps: Float[Array, "B G C"] | None  # of the frozen reference; None without the KL penalty
    old_logps: Float[Array, "B G C"] | None  # before the first update; None while the policy is that policy


@pytree
class Supervised:
    """Prompts with the answers to imitate, one each (G = 1), right-padded."""

    prompt: Prompt
    tokens: Int[Array, "B 1 C"]
    mask: Bool[Array, "B 1 C"]  # what the loss counts of the answers
    prompt_mask: Bool[Array, "B T"] | None  # what it counts of the prompts: None for nothing

    def token_counts(self) -> Float[Array, " B"]:
        """What the loss counts of each."""
        counts = self.mask.sum((1, 2), dtype=jnp.float32)
        if self.prompt_mask is None:
            return counts
        return counts + self.prompt_mask[:, 1:].sum(1, dtype=jnp.float32)


@pytree
class TrainState:
    """What a training step replaces, and what a checkpoint holds."""

    model: Any  # Model, fp32 masters: at a learning rate of 1e-6 a bf16 weight would not move
    opt_state: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]  # steps left out because their loss or gradient was not finite
    skipped_in_a_row: Int[Array, ""]
