"""HF -> ours -> HF keeps every bit, and others can load the result."""

import json

import numpy as np
import pytest
from published_models import ASSETS, differences, halves, in_transformers_spelling, shard, tensors_of

import vr1_jax
from vr1_jax.errors import UsageError, UserError
from vr1_jax.models import mapping
from vr1_jax.weights import array_store, checkpoint_dir
from vr1_jax.weights.conversion import flax_to_hf, hf_to_flax


def there_and_back(source, tmp_path, dtype=None, **export):
    hf_to_flax(source, tmp_path / "ours", dtype=dtype)
    flax_to_hf(tmp_path / "ours", tmp_path / "back", **export)
    return tmp_path / "back"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_every_bit_returns(published, tmp_path, tied, dtype):
    assert differences(published(tied, dtype), there_and_back(published(tied, dtype), tmp_path)) == []


def test_every_bit_returns_from_float32_masters(published, tmp_path):
    assert differences(published(), there_and_back(published(), tmp_path, "float32")) == []
    assert json.loads((tmp_path / "ours" / "meta.json").read_text())["dtype"] == "float32"


def test_spelling_and_shards_return_as_published(published, altered, tmp_path):
    source = altered(in_transformers_spelling, published(False))
    shard(source, *halves(tensors_of(source)))
    back = there_and_back(source, tmp_path, max_shard_bytes=100_000)
    assert differences(published(False), back) == []
    index = json.loads((back / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in back.glob("*.safetensors"))
    assert len(files) > 1
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors_of(back).values())


def test_the_comparison_sees_swapped_layers(published, altered, tmp_path):
    a, b = (f"visual.blocks.{layer}.attn.qkv.weight" for layer in (0, 1))
    swapped = altered(lambda tensors: tensors | {a: tensors[b], b: tensors[a]})
    assert differences(published(), there_and_back(swapped, tmp_path)) == [a, b]


def test_a_tied_export_has_no_head(published, tmp_path):
    assert "lm_head.weight" not in tensors_of(there_and_back(published(True), tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_export(published, tmp_path, tied):
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    back = there_and_back(published(tied, "float32"), tmp_path, max_shard_bytes=200_000)
    load = Qwen2_5_VLForConditionalGeneration.from_pretrained
    exported, report = load(back, output_loading_info=True, dtype=torch.float32)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = load(published(tied, "float32"), dtype=torch.float32)
    tokens = torch.arange(2, 14).reshape(2, 6)
    pixels, grid = torch.randn(16, 1176), torch.tensor([[1, 4, 4]])
    with torch.no_grad():
        assert torch.equal(exported(input_ids=tokens).logits, original(input_ids=tokens).logits)
        see = lambda model: model.get_image_features(pixels, grid).pooler_output[0]  # noqa: E731
        assert torch.equal(see(exported), see(original))
        model_norm = exported.model.language_model.norm.weight
        model_norm += 0.1
        assert not torch.equal(exported(input_ids=tokens).logits, original(input_ids=tokens).logits)


def test_config_is_flat_and_keeps_what_it_said(published, tmp_path):
    back = there_and_back(published(), tmp_path, dtype=None)
    config = json.loads((back / "config.json").read_text())
    assert "text_config" not in config
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert config["torch_dtype"] == "bfloat16"
    assert config["hidden_size"] == 64
    assert config["rope_scaling"]["type"] == "mrope"
    assert vr1_jax.load_model(back)[1] == vr1_jax.load_model(published())[1]


def test_other_files_travel_but_never_code(published, altered, tmp_path):
    source = altered()
    for name in ("modeling_custom.py", "pytorch_model.bin", "training_args.bin", "notes.txt"):
        (source / name).write_text("surprise")
    back = there_and_back(source, tmp_path)
    present = {file.name for file in back.iterdir()}
    assert present == {*ASSETS, "config.json", "generation_config.json", "model.safetensors"}
    assert all((back / name).read_text() == content for name, content in ASSETS.items())


def test_export_dtype_can_be_chosen(published, tmp_path):
    back = there_and_back(published(), tmp_path, dtype="float32")
    assert {x.dtype.name for x in tensors_of(back).values()} == {"bfloat16"}
    flax_to_hf(tmp_path / "ours", tmp_path / "wide", dtype="float32")
    assert {x.dtype.name for x in tensors_of(tmp_path / "wide").values()} == {"float32"}
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"


def test_narrowing_past_the_range_of_float16_is_refused(altered, tmp_path):
    key = "model.layers.1.mlp.up_proj.weight"
    source = altered(lambda tensors: tensors | {key: tensors[key] * np.asarray(1e6, tensors[key].dtype)})
    hf_to_flax(source, tmp_path / "ours")
    with pytest.raises(UserError, match=f"{key}.*float16"):
        flax_to_hf(tmp_path / "ours", tmp_path / "narrow", dtype="float16")
    assert [path.name for path in tmp_path.iterdir() if "narrow" in path.name] == []


def test_mixed_precision_widens(published, altered, tmp_path):
    key = "model.norm.weight"
    source = altered(lambda tensors: tensors | {key: tensors[key].astype(np.float32) + np.float32(1e-6)})
    wide = there_and_back(source, tmp_path, dtype=None)
    assert differences(published(), wide) == []  # the export rounds back to the config's bfloat16
    flax_to_hf(tmp_path / "ours", tmp_path / "exact", dtype="float32")
    np.testing.assert_array_equal(tensors_of(tmp_path / "exact")[key], tensors_of(source)[key])


def test_a_step_of_a_run_is_exported(published, tmp_path):
    import orbax.checkpoint.experimental.v1 as ocp

    run, model = tmp_path / "run", vr1_jax.load_model(published())[0]
    checkpoint_dir.copy_assets(published(), run / checkpoint_dir.HF)
    for step, context in ((3, ocp.Context()), (12, array_store.save_context())):
        with context:
            state = {checkpoint_dir.PARAMS: mapping.to_tree(model), "optimizer": {"count": np.array(step)}}
            ocp.save_checkpointables(checkpoint_dir.step_directory(run, step), state)
        flax_to_hf(run, tmp_path / str(step), step=step)
        assert differences(published(), tmp_path / str(step)) == []
    flax_to_hf(run, tmp_path / "latest")
    with pytest.raises(UsageError, match="holds other files"):
        hf_to_flax(published(), run, force=True)  # a run is never replaced
    assert checkpoint_dir.steps(run) == [3, 12]
