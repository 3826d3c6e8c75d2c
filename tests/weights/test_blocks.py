import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from vr1_jax.weights import blocks

shapes = st.lists(st.one_of(st.integers(1, 40), st.sampled_from([2048, 11008, 151936])), min_size=1, max_size=3)


@given(shapes.map(tuple), st.sampled_from([2, 4]), st.booleans())
@settings(deadline=None, max_examples=100)
def test_files_cover_an_array_once_and_parts_fill_files(shape, itemsize, stacked):
    if stacked:
        shape = (3, *shape)
    file, part = blocks.chunk_shapes(shape, itemsize, stacked)
    assert all(big % small == 0 for big, small in zip(file, part, strict=True))
    assert not stacked or file == (1, *shape[1:])
    rows = [index[0].indices(shape[0]) for index in blocks.write_order(shape, itemsize, stacked)]
    assert [row for start, stop, _ in rows for row in range(start, stop)] == list(range(shape[0]))
    assert all(start % file[0] == 0 and stop - start <= file[0] for start, stop, _ in rows)


def test_parts_are_small_where_rows_allow():
    assert blocks.chunk_shapes((36, 2048, 11008), 2, True) == ((1, 2048, 11008), (1, 128, 11008))
    file, part = blocks.chunk_shapes((151936, 2048), 2, False)
    assert part == (128, 2048)
    assert 30e6 < np.prod(file) * 2 <= 32 * 2**20


@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("target", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_copies_equal_numpys(source, target):
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(source).T
    out = np.empty((4, 6), target)
    blocks.copy_into(out, values)
    assert out.tobytes() == values.astype(target).tobytes()


def test_every_bit_pattern_moves_unchanged():
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(2**16, ml_dtypes.bfloat16)
    blocks.copy_into(out, bits.view(ml_dtypes.bfloat16))  # NaN payloads too
    np.testing.assert_array_equal(out.view(np.uint16), bits)
