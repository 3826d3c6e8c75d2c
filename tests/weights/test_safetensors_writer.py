import json

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes
from safetensors import safe_open
from safetensors.numpy import load_file

from vr1_jax.weights.hf_directory import ShardWriter, plan_shards


@given(
    shapes=st.lists(array_shapes(max_dims=3, max_side=5), min_size=1, max_size=6),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
    max_bytes=st.integers(1, 1000),
    random=st.randoms(),
)
@settings(deadline=None, max_examples=40)
def test_library_reads_what_was_written_in_any_order(tmp_path_factory, shapes, dtype, max_bytes, random):
    directory = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": np.full(shape, i + 0.5, dtype) for i, shape in enumerate(shapes)}
    writer = ShardWriter(directory, {key: x.shape for key, x in tensors.items()}, np.dtype(dtype), max_bytes)
    for key in random.sample(sorted(tensors), len(tensors)):
        writer.write(key, tensors[key])

    read = {}
    for file in directory.glob("*.safetensors"):
        read |= load_file(file)
        with safe_open(file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        np.testing.assert_array_equal(read[key], tensor)


def test_index_names_every_tensor_and_the_total(tmp_path):
    ShardWriter(tmp_path, {"a": (4,), "b": (4,), "c": (2,)}, np.dtype(np.float32), 24)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index == {"metadata": {"total_size": 40}, "weight_map": {"a": first, "b": second, "c": second}}


def test_one_file_needs_no_index(tmp_path):
    ShardWriter(tmp_path, {"a": (4,), "b": (4,)}, np.dtype(np.float32), 32)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 100))
def test_plan_keeps_order_and_limit(sizes, limit):
    named = {str(i): size for i, size in enumerate(sizes)}
    shards = plan_shards(named, limit)
    assert [key for shard in shards for key in shard] == list(named)
    assert all(len(shard) == 1 or sum(named[key] for key in shard) <= limit for shard in shards)


def test_wrong_size_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, {"a": (4,)}, np.dtype(np.float32), 100)
    with pytest.raises(ValueError, match="12 bytes for a place of 16"):
        writer.write("a", np.zeros(3, np.float32))
