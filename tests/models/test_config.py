import copy
import json

import pytest
from reference_model import hf_config
from transformers import Qwen2_5_VLConfig

from vr1_jax.errors import UsageError
from vr1_jax.models.config import flatten_hf_config
from vr1_jax.models.families import parse_hf_config


def test_both_layouts_give_the_same_config(tmp_path):
    Qwen2_5_VLConfig(**copy.deepcopy(hf_config(True))).save_pretrained(tmp_path)
    nested = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in nested  # the installed transformers writes the other layout
    assert parse_hf_config(nested) == parse_hf_config(hf_config(True))


def test_flattened_config_reads_back_in_transformers(tmp_path):
    Qwen2_5_VLConfig(**copy.deepcopy(hf_config(False))).save_pretrained(tmp_path)
    flat = flatten_hf_config(json.loads((tmp_path / "config.json").read_text()))
    assert "text_config" not in flat
    assert flat["rope_scaling"] == {"type": "mrope", "mrope_section": [1, 1, 2]}
    assert (
        Qwen2_5_VLConfig(**flat).text_config.to_dict()
        == Qwen2_5_VLConfig(**hf_config(False)).text_config.to_dict()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "mrope_section"),
        ({"num_attention_heads": 6}, "6 heads"),
        ({"num_key_value_heads": 3}, "3 kv heads"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vision_config": {"out_hidden_size": 32}}, "out_hidden_size 32"),
        ({"vision_config": {"window_size": 100}}, "window_size 100"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "hidden_act='quick_gelu'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change, message):
    config = hf_config(True)
    for key, value in change.items():
        if key == "vision_config":
            config[key].update(value)
        elif value is None:
            del config[key]
        else:
            config[key] = value
    with pytest.raises(UsageError, match=message):
        parse_hf_config(config)


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_published_configs(shared_data, size):
    config = parse_hf_config(json.loads((shared_data / f"hf/Qwen2.5-VL-{size}-Instruct/config.json").read_text()))
    assert config.text.tied == (size == "3B")
    assert config.vision.tokens_per_second == 2
    assert config.vision.full_attention_layers == (7, 15, 23, 31)
