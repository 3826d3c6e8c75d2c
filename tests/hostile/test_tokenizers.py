"""Tokenizers that do not load, and chat templates that do not render or do not end."""

import pytest
from hostile_models import LOOPS, edit

TOKENIZER = {
    "nothing": ("tokenizer.json", "{}", "tokenizer.json"),
    "model_as_text": ("tokenizer.json", '{"model": "BPE"}', "tokenizer.json"),
    "class_as_number": ("tokenizer_config.json", {"tokenizer_class": 5}, "tokenizer"),
    "pad_as_list": ("tokenizer_config.json", {"pad_token": [1]}, "tokenizer"),
    "special_tokens_as_list": ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "tokenizer"),
    "stop_as_text": (
        "generation_config.json",
        {"eos_token_id": "<|im_end|>"},
        "generation_config.json: eos_token_id",
    ),
    "stop_as_fraction": (
        "generation_config.json",
        {"eos_token_id": [1.5]},
        "generation_config.json: eos_token_id",
    ),
    "stop_outside": ("generation_config.json", {"eos_token_id": 10**9}, "generation_config.json: eos_token_id"),
    "stop_never": ("generation_config.json", {"eos_token_id": []}, "generation_config.json: eos_token_id"),
}


@pytest.mark.parametrize("case", TOKENIZER)
def test_tokenizers(model, refused, case):
    name, change, words = TOKENIZER[case]
    if isinstance(change, str):
        (model / name).write_text(change)
    else:
        edit(model / name, lambda config: config.update(change))
    refused(model, words, by=("generate", "start_training"))


TEMPLATES = {
    "syntax": ("{% for m in messages %}", "TemplateSyntaxError"),
    "unknown_tag": ("{% exec 'x' %}", "TemplateSyntaxError"),
    "forbidden": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "forbidden_call": ("{{ messages.append.__globals__ }}{{ messages.append(1) }}", "cannot be rendered"),
    "undefined": ("{{ nothing.at.all }}", "UndefinedError"),
    "raises": ("{{ raise_exception('no\nsuch chat') }}", "no such chat"),
    "loops": (LOOPS, "does not end within"),
    "powers": ("{{ 9 ** 9 ** 9 ** 9 }}", "chat template"),
    "memory": ("{{ 'x' * 10 ** 11 }}", "chat template"),
    "long": ("{{ 'x' * 10 ** 7 }}", "10000000 characters"),
    "deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be rendered"),
    "recursive": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "lone_surrogate": ("{{ '\\ud800' }}", "cannot be rendered"),
    "drops_text": ("{% for m in messages %}{{ m.role }}{% endfor %}", "drops, repeats or alters"),
    "as_number": (5, "chat_template"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_templates(model, refused, case, monkeypatch):
    monkeypatch.setattr("vr1_jax.data.chat_template.DEADLINE_SECONDS", 3.0)
    template, words = TEMPLATES[case]
    edit(model / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    refused(model, words, by=("generate", "start_training"))
