"""No gradient makes moments of a byte move a parameter much further than Adam would."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vr1_jax.training.moments import decode, encode, scale_by_int8_adam

SHAPE, STEPS = (4, 64), 60
# Rounding up the first moment (9 %) and down the root of the second (4.5 %) at once, some steps in a row.
FURTHER = 1.35


def gradients(largest: float, rest: float, kind: str) -> np.ndarray:
    """One large value in every row, the rest far below it: steady, of changing sign, late, or in bursts."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(STEPS, *SHAPE)) * rest
    if kind == "steady":
        values = np.abs(values) + rest
    if kind == "late":
        values[: STEPS // 2] = 0
    if kind == "bursts":
        values[19::20] *= 1000
    values[:, :, 0] = largest * (1 if kind == "steady" else rng.normal(size=(STEPS, SHAPE[0])))
    return values.astype(np.float32)


def largest_update(optimizer: optax.GradientTransformation, gradients: np.ndarray) -> float:
    def body(state, gradient):
        update, state = optimizer.update(gradient, state)
        return state, jnp.abs(update).max()

    _, found = jax.jit(lambda g: jax.lax.scan(body, optimizer.init(g[0]), g))(gradients)
    return float(found.max())


@pytest.mark.parametrize("kind", ["steady", "noise", "late", "bursts"])
def test_updates_stay_near_adams_bound_whatever_a_row_holds(kind):
    adam, small = optax.scale_by_adam(0.9, 0.999, 1e-8), scale_by_int8_adam(0.9, 0.999, 1e-8)
    for largest, rest in itertools.product((1e-3, 1e-1), (1e-8, 1e-7, 1e-6, 1e-4)):
        given = gradients(largest, rest, kind)
        assert largest_update(small, given) < FURTHER * largest_update(adam, given), (largest, rest)


def test_a_second_moment_is_never_forgotten_and_zero_stays_zero():
    values = jnp.array([[1.0, 1e-5, 1e-9, 1e-30, 0.0]])
    for chance in (0.0, 0.5, 0.999):
        codes = encode(values, jnp.uint8, jnp.full(values.shape, chance)).codes
        assert (codes[0, :4] > 0).all()
        assert codes[0, 4] == 0
        found = decode(encode(values, jnp.uint8, jnp.full(values.shape, chance)))
        assert (found[0, 2:4] >= values[0, 2:4]).all()  # rounded up, never down
