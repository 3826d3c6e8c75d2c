import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from published_models import halves, in_transformers_spelling, shard, tensors_of

from vr1_jax.errors import UserError
from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.weights.hf_directory import HFDirectory, Tensor

UP = "model.layers.1.mlp.up_proj.weight"
BF16 = np.dtype(ml_dtypes.bfloat16)
INDEX = "model.safetensors.index.json"


def refused(directory, *words):
    with pytest.raises(UserError) as caught:
        HFDirectory(directory)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def everything(source: HFDirectory) -> dict[str, np.ndarray]:
    return {
        rule.path: source.read(rule.path, tuple(map(slice, source.shapes[rule.path])), BF16)
        for rule in Qwen25VL.rules(source.config)
    }


def same(a: HFDirectory, b: HFDirectory) -> bool:
    first, second = everything(a), everything(b)
    return first.keys() == second.keys() and all(first[key].tobytes() == second[key].tobytes() for key in first)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("tied", [True, False])
def test_spelling_and_shards_make_no_difference(published, altered, tied):
    directory = altered(in_transformers_spelling, published(tied))
    shard(directory, *halves(tensors_of(directory)))
    assert same(HFDirectory(directory), HFDirectory(published(tied)))


def test_swapped_layers_do_make_a_difference(published, altered):
    other = UP.replace("1", "2")

    def swap(tensors):
        tensors[UP], tensors[other] = tensors[other], tensors[UP]

    assert not same(HFDirectory(altered(swap)), HFDirectory(published()))


def test_links_of_a_download_cache_are_followed(published, tmp_path):
    for file in published().iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert same(HFDirectory(tmp_path), HFDirectory(published()))


def test_only_the_wanted_slices_are_read(published, monkeypatch):
    read, original = [], Tensor.read

    def counted(tensor, *index):
        block = original(tensor, *index)
        read.append((tensor.key, block.shape))
        return block

    monkeypatch.setattr(Tensor, "read", counted)
    source = HFDirectory(published(False))
    # Heads 2 and 3 (8 wide) of 8, half of the width 64, layer 1 only.
    source.read("text.layers.query", (slice(1, 2), slice(0, 32), slice(2, 4), slice(0, 8)), BF16)
    assert read == [("model.layers.1.self_attn.q_proj.weight", (16, 32))]
    read.clear()
    source.read("vision.layers.qkv", (slice(0, 1), slice(0, 64), slice(0, 3), slice(1, 2), slice(0, 16)), BF16)
    assert read == [("visual.blocks.0.attn.qkv.weight", (16, 64))] * 3


def test_missing(altered):
    refused(altered(without(UP)), "missing", UP)


def test_long_lists_are_cut(altered):
    refused(altered(lambda tensors: halves(tensors)[0]), "missing", " more")


def test_unknown(altered):
    extra = {"model.extra.weight": np.zeros(2, np.float32)}
    refused(altered(lambda tensors: tensors | extra), "model.extra.weight")


def test_untied_without_head(published, altered):
    refused(altered(without("lm_head.weight"), published(False)), "lm_head.weight")


def test_duplicate_in_the_other_spelling(altered):
    double = "model.language_model.norm.weight"
    refused(altered(lambda tensors: tensors | {double: tensors["model.norm.weight"]}), "duplicate", double)


def test_duplicate_in_two_shards(altered):
    directory = altered()
    first, second = halves(tensors_of(directory))
    key = next(iter(first))
    shard(directory, first, second | {key: first[key]})
    refused(directory, key)
    edit_json(directory / INDEX, lambda index: index["weight_map"].update({key: "model-0.safetensors"}))
    refused(directory, key)


def test_wrong_shape(altered):
    refused(altered(lambda tensors: tensors | {UP: tensors[UP][:-1]}), UP, "[95, 64]", "[96, 64]")


def test_another_config_than_the_weights(altered):
    directory = altered()
    edit_json(directory / "config.json", lambda config: config["text_config"].update(intermediate_size=112))
    refused(directory, "mlp.down_proj", "[64, 96]", "[64, 112]")


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_truncated(altered, keep):
    file = altered() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(file.parent, "model.safetensors", "truncated")


def test_not_safetensors(altered):
    file = altered() / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(file.parent, "not a safetensors file")


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_dtype(altered, dtype):
    refused(altered(lambda tensors: tensors | {UP: tensors[UP].astype(dtype)}), UP, "BF16, F16, F32")


def test_head_of_a_tied_model(altered, published):
    embed = "model.embed_tokens.weight"
    directory = altered(lambda tensors: tensors | {"lm_head.weight": tensors[embed]})
    assert same(HFDirectory(directory), HFDirectory(published()))
    shutil.rmtree(directory)
    refused(altered(lambda tensors: tensors | {"lm_head.weight": -tensors[embed]}), "lm_head.weight", "tie_word")


def test_rotary_buffers_are_ignored(altered, published):
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "visual.rotary_pos_emb.inv_freq": np.ones(4, np.float64),
    }
    assert same(HFDirectory(altered(lambda tensors: tensors | buffers)), HFDirectory(published()))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", 3])
def test_index_stays_inside(altered, name):
    directory = altered()
    shard(directory, *halves(tensors_of(directory)))
    edit_json(directory / INDEX, lambda index: index["weight_map"].update({UP: name}))
    refused(directory, UP, repr(name))


def test_index_names_a_missing_file(altered):
    directory = altered()
    shard(directory, *halves(tensors_of(directory)))
    (directory / "model-1.safetensors").unlink()
    refused(directory, "model-1.safetensors", "does not exist")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', "\udcff"])
def test_broken_index(altered, text):
    directory = altered()
    shard(directory, *halves(tensors_of(directory)))
    (directory / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    refused(directory, INDEX)


def test_single_file_beside_an_index(altered):
    directory = altered()
    (directory / INDEX).write_text("{}")
    refused(directory, "both")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled(altered, name):
    directory = altered()
    (directory / "model.safetensors").rename(directory / name)
    refused(directory, name, "pickled", "save_pretrained")


def test_no_weights(altered):
    directory = altered()
    (directory / "model.safetensors").unlink()
    refused(directory, "model.safetensors", "download")


def test_no_config(altered):
    directory = altered()
    (directory / "config.json").unlink()
    refused(directory, "no config.json")


def test_another_architecture(altered):
    directory = altered()
    edit_json(directory / "config.json", lambda config: config.update(model_type="llama"))
    refused(directory, "config.json", "'llama'", "qwen2_5_vl")
