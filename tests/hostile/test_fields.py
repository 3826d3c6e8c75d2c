"""config.json and its fellows: types, ranges, size and depth."""

import pytest
from hostile_models import DEEP, edit

CONFIG = {
    "layers_as_text": {"num_hidden_layers": "28"},
    "layers_as_fraction": {"num_hidden_layers": 1.5},
    "layers_as_truth": {"num_hidden_layers": True},
    "no_layers": {"num_hidden_layers": 0},
    "a_billion_layers": {"num_hidden_layers": 10**9},
    "more_layers_than_weights": {"num_hidden_layers": 900},
    "width_as_text": {"hidden_size": "64"},
    "width_as_list": {"hidden_size": [64]},
    "width_negative": {"hidden_size": -64},
    "width_enormous": {"hidden_size": 10**400},
    "no_heads": {"num_attention_heads": 0},
    "heads_that_do_not_divide": {"num_attention_heads": 5},
    "no_kv_heads": {"num_key_value_heads": 0},
    "head_dim_as_text": {"head_dim": "16"},
    "mlp_null": {"intermediate_size": None},
    "vocab_as_text": {"vocab_size": "many"},
    "vocab_too_small": {"vocab_size": 10},
    "eps_not_a_number": {"rms_norm_eps": float("nan")},
    "eps_as_text": {"rms_norm_eps": "tiny"},
    "theta_infinite": {"rope_theta": float("inf")},
    "theta_negative": {"rope_theta": -1},
    "tied_as_text": {"tie_word_embeddings": "false"},
    "rope_as_list": {"rope_scaling": [1]},
    "sections_as_number": {"rope_scaling": {"type": "mrope", "mrope_section": 8}},
    "sections_two": {"rope_scaling": {"type": "mrope", "mrope_section": [4, 4]}},
    "sections_negative": {"rope_scaling": {"type": "mrope", "mrope_section": [-1, 4, 5]}},
    "rope_kind_as_list": {"rope_scaling": {"type": ["mrope"]}},
    "image_token_as_text": {"image_token_id": "<|image_pad|>"},
    "image_token_outside": {"image_token_id": 10**6},
    "image_token_negative": {"image_token_id": -1},
    "vision_null": {"vision_config": None},
    "vision_as_list": {"vision_config": [1, 2]},
    "vision_as_text": {"vision_config": "tower"},
    "text_as_list": {"text_config": [1]},
    "model_type_as_list": {"model_type": ["qwen2_5_vl"]},
    "activation_as_object": {"hidden_act": {"name": "silu"}},
    "rope_parameters_as_text": {"rope_parameters": "default"},
}
VISION = {
    "patch_zero": {"patch_size": 0},
    "patch_as_text": {"patch_size": "14"},
    "merge_zero": {"spatial_merge_size": 0},
    "no_vision_heads": {"num_heads": 0},
    "vision_depth_enormous": {"depth": 10**9},
    "vision_blocks_as_number": {"fullatt_block_indexes": 1},
    "vision_blocks_as_text": {"fullatt_block_indexes": ["0"]},
    "window_fraction": {"window_size": 112.5},
    "channels": {"in_chans": 1},
    "tokens_per_second_zero": {"tokens_per_second": 0},
    "vision_rope_as_list": {"rope_parameters": [1]},
}
# Refusals that say more than the field: what they name.
ALSO = {
    "more_layers_than_weights": "weights are missing: model.layers.1",
    "heads_that_do_not_divide": "heads",
    "text_as_list": "text_config",
    "sections_as_number": "mrope_section",
    "sections_two": "mrope_section",
    "sections_negative": "mrope_section",
    "vision_null": "vision_config",
    "vocab_too_small": "id",
}


@pytest.mark.parametrize("case", [*CONFIG, *VISION])
def test_fields_of_the_config(model, refused, case):
    path, changes = model / "config.json", CONFIG.get(case) or VISION[case]
    edit(path, lambda config: (config if case in CONFIG else config["vision_config"]).update(changes))
    refused(model, ALSO.get(case, next(iter(changes))))


BROKEN_JSON = {
    "empty": ("", "not valid JSON"),
    "deep": (DEEP, "nested"),
    "less_deep": ('{"a":' * 500 + "1" + "}" * 500, "nested"),
    "list": ("[]", "expected a JSON object"),
    "null": ("null", "expected a JSON object"),
    "long_number": ('{"hidden_size": ' + "9" * 10_000 + "}", "not valid JSON"),
    "other_encoding": ("\udcff\udcfe{}", "not valid JSON"),
}


@pytest.mark.parametrize("broken", BROKEN_JSON)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_json_that_is_none(model, refused, name, broken):
    text, words = BROKEN_JSON[broken]
    (model / name).write_bytes(text.encode(errors="surrogateescape"))
    commands = ("hf_to_flax", "start_training") if name == "config.json" else ("generate",)
    refused(model, name, words, by=commands)


def test_json_without_end(model, refused):
    with (model / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)  # sparse: takes no room
    refused(model, "tokenizer.json", "MB", by=("generate", "start_training"))
