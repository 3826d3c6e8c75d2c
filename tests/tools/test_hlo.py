"""What is read from compiled programs, against programs whose work is known."""

import jax
import jax.numpy as jnp
import pytest

from vr1_jax.tools.plan.hlo import Module

M, N, LAYERS = 64, 48, 5


def work(function, *shapes, decoded=()):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arrays).compile().as_text()
    return Module(text).work(1e12, 1e9, decoded)


def test_a_product_reads_its_factors_and_writes_its_result():
    found = work(lambda a, b: a @ b, (M, N), (N, M))
    assert found.flops == 2 * M * M * N
    assert found.bytes >= 4 * (2 * M * N + M * M)
    assert found.seconds == pytest.approx(found.bytes / 1e9, rel=0.01)  # bound by memory on such a device


def test_a_loop_counts_each_time():
    def scanned(x, layers):
        return jax.lax.scan(lambda x, layer: (x @ layer, None), x, layers)[0]

    assert work(scanned, (M, N), (LAYERS, N, N)).flops == LAYERS * 2 * M * N * N


def test_decoding_counts_as_often_as_one_says():
    def decoded(x, w, end):
        with jax.named_scope("decode"):
            return jax.lax.while_loop(lambda c: c[0] < end[0], lambda c: (c[0] + 1, c[1] @ w), (0.0, x))[1]

    once, often = (work(decoded, (M, N), (N, N), (1,), decoded=[times]).flops for times in (1, 7))
    assert (once, often) == (2 * M * N * N, 7 * 2 * M * N * N)


HLO = """
%fused_slice (p0: bf16[36,2048,11008], p1: s32[]) -> bf16[2048,11008] {
  %p0 = bf16[36,2048,11008]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,2048,11008]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,2048,11008}
  ROOT %flat = bf16[2048,11008]{1,0} bitcast(%slice)
}

ENTRY %main (weights: bf16[36,2048,11008], index: s32[], x: bf16[8,448]) -> bf16[2048,11008] {
  %weights = bf16[36,2048,11008]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %x = bf16[8,448]{1,0} parameter(2)
  %started = (bf16[8,448]{1,0}, bf16[8,3584]{1,0}) all-gather-start(%x), dimensions={1}
  %gathered = bf16[8,3584]{1,0} all-gather-done(%started)
  %summed = bf16[8,448]{1,0} all-reduce(%x), to_apply=%add
  ROOT %copied = bf16[2048,11008]{1,0} fusion(%weights, %index), kind=kCustom, calls=%fused_slice
}
"""


def test_copies_and_traffic_are_told_apart():
    found = Module(HLO).work(1e12, 1e9)
    size = 2 * 2048 * 11008
    assert found.copies == {"bf16[2048,11008]": pytest.approx(size, rel=1e-3)}  # the slice, not the stack
    assert found.bytes == pytest.approx(2 * size, rel=1e-3)
    assert found.collectives == {"all-gather": 2 * 8 * 3584, "all-reduce": 2 * 8 * 448}
    assert found.synchronous == 2 * 8 * 448
