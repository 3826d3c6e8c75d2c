"""Model directories that are broken or mean harm: one line that names the file, soon, from every command."""

import contextlib
import importlib.util
import json
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_runs import sft_config, write_small_world

from vr1_jax import command_line
from vr1_jax.benchmark.random_model import write_random_model
from vr1_jax.models.config import parse_hf_config
from vr1_jax.training.loop import train
from vr1_jax.weights.hf_directory import HFDirectory

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 90  # a hundred times what a refusal takes
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def script(folder, name):
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@contextlib.contextmanager
def deadline():
    def late(*_):
        raise AssertionError(f"not done after {SECONDS} s")

    usual = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Records, and a sound model with weights."""
    out = tmp_path_factory.mktemp("hostile") / "world"
    write_small_world(out)
    config = parse_hf_config(json.loads((out / "tiny/config.json").read_text()))
    made = out.parent / "made"
    write_random_model(made, config, np.dtype(np.float32))
    shutil.copyfile(made / WEIGHTS, out / "tiny" / WEIGHTS)
    HFDirectory(out / "tiny")
    return out


@pytest.fixture
def model(world, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(world / "tiny", tmp_path / "model"))


@pytest.fixture
def commands(world, tmp_path):
    """Name -> what runs the command on a model directory and returns its exit code."""

    def hf_to_flax(model):
        return script("convert", "hf_to_flax")(["--hf", str(model), "--out", str(tmp_path / "converted")])

    def generate(model):
        return script("scripts", "generate")(["--model", str(model), "--question", "x", "--max-new-tokens", "2"])

    def score(model):
        (tmp_path / "in.jsonl").write_text((world / "train.json").read_text())
        files = [
            "--records",
            tmp_path / "in.jsonl",
            "--out",
            tmp_path / "out.jsonl",
            "--media-root",
            world / "media",
        ]
        return script("scripts", "score")(["--model", str(model), *map(str, files)])

    def evaluate(model):
        asked = ["--annotations", world / "heldout.json", "--media-root", world / "media", "--frames", 2]
        options = ["--max-new-tokens", 2, "--out", tmp_path / "out.json", "--workers", 1]
        return script("scripts", "evaluate")([str(x) for x in ("--model", model, *asked, *options)])

    def start_training(model):
        config = sft_config(world, tmp_path / "run", model=str(model), from_scratch=False)
        code = command_line.run("train", lambda: train(config) and None)
        assert not (tmp_path / "run/hf").exists()  # the mended directory must not find a copy of the broken one
        return code

    return {f.__name__: f for f in (hf_to_flax, generate, score, evaluate, start_training)}


@pytest.fixture
def refused(commands, capfd):
    """Runs commands that must fail with one line."""

    def check(model, *words, by=("hf_to_flax", "generate", "start_training")):
        for name in by:
            capfd.readouterr()
            with deadline():
                code = commands[name](model)
            lines = [line for line in capfd.readouterr().err.splitlines() if "converting:" not in line]
            assert (code, len(lines)) == (1, 1), lines
            assert len(lines[0]) < 1000
            for word in (str(model), *words):
                assert word in lines[0]

    return check


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


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
    "loops": ("{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4, "does not end within"),
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


def poison(value):
    def change(tensors):
        tensors[NORM] = tensors[NORM].copy()
        tensors[NORM][-1] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(model, refused, value):
    tensors = load_file(model / WEIGHTS)
    poison(value)(tensors)
    save_file(tensors, model / WEIGHTS)
    refused(model, WEIGHTS, NORM, "not finite", by=("hf_to_flax", "generate", "score", "evaluate"))


def test_weights_whose_answers_are_no_numbers(model, commands, capfd):
    """Each weight is a number, their products are not."""
    tensors = load_file(model / WEIGHTS)
    save_file({key: np.full_like(x, 3e38) for key, x in tensors.items()}, model / WEIGHTS)
    assert commands["generate"](model) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "generate: the model's log-probs are not finite numbers: its weights are damaged\n"


def header(tensors: dict, size: int = 64) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def one(dtype="F32", shape=(16,), offsets=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


FILES = {
    "length_enormous": struct.pack("<Q", 2**63) + b"{}",
    "length_beyond": struct.pack("<Q", 10**6) + b"{}",
    "header_deep": struct.pack("<Q", len(DEEP)) + DEEP.encode(),
    "header_no_json": struct.pack("<Q", 4) + b"oops",
    "offsets_enormous": header({NORM: one(offsets=(0, 2**62))}),
    "offsets_backwards": header({NORM: one(offsets=(64, 0))}),
    "offsets_negative": header({NORM: one(offsets=(-64, 0))}),
    "overlap": header({NORM: one(), "b": one()}),
    "gap": header({NORM: one(offsets=(0, 64)), "b": one(offsets=(128, 192))}, 192),
    "shape_enormous": header({NORM: one(shape=(2**62, 2**62))}),
    "shape_as_text": header({NORM: one(shape=("16",))}),
    "dtype_unknown": header({NORM: one(dtype="F99")}),
    "dtype_quantised": header({NORM: one(dtype="I8", shape=(64,))}),
    "tensors_missing": header({NORM: one()}),
    "empty": b"",
}


@pytest.mark.parametrize("case", FILES)
def test_safetensors_that_lie(model, refused, case):
    (model / WEIGHTS).write_bytes(FILES[case])
    refused(model, "weights are missing" if case == "tensors_missing" else WEIGHTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.clear(), "no weight_map"),
        (lambda index: index.update(weight_map=[1]), "no weight_map"),
        (lambda index: index["weight_map"].popitem(), "disagree"),
        (lambda index: index["weight_map"].update({NORM: "../x.safetensors"}), "not the name"),
        (lambda index: index["weight_map"].update({NORM: ["a"]}), "not the name"),
        (lambda index: index["weight_map"].update({NORM: "absent.safetensors"}), "does not exist"),
    ],
)
def test_an_index_that_lies(model, refused, change, words):
    (model / WEIGHTS).rename(model / "a.safetensors")
    weight_map = dict.fromkeys(load_file(model / "a.safetensors"), "a.safetensors")
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    edit(model / INDEX, change)
    refused(model, INDEX, words)


def test_a_truncated_index(model, refused):
    (model / WEIGHTS).rename(model / "a.safetensors")
    (model / INDEX).write_text('{"metadata": {}, "weight_map": {"model.norm.weight": "a.safeten')
    refused(model, INDEX, "not valid JSON")


def test_what_is_not_read_does_no_harm(model, commands):
    (model / "preprocessor_config.json").write_text(DEEP)
    code = {"tokenizer_class": "Exec", "auto_map": {"AutoTokenizer": ["x.Y", None]}}
    edit(model / "tokenizer_config.json", lambda config: config.update(code))
    (model / "x.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    assert commands["hf_to_flax"](model) == 0
    assert commands["generate"](model) == 0
    assert not (model / "ran").exists()


@pytest.mark.parametrize("case", ["layers", "template", "nan"])
def test_as_a_user_meets_it(model, case):
    command = ["scripts/generate.py", "--question", "x", "--model", str(model)]
    if case == "layers":
        edit(model / "config.json", lambda config: config.update(CONFIG["a_billion_layers"]))
    elif case == "template":
        loops = {"chat_template": TEMPLATES["loops"][0]}
        edit(model / "tokenizer_config.json", lambda config: config.update(loops))
    else:
        tensors = load_file(model / WEIGHTS)
        poison(np.nan)(tensors)
        save_file(tensors, model / WEIGHTS)
        command = ["convert/hf_to_flax.py", "--hf", str(model), "--out", str(model.parent / "out")]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=2 * SECONDS, check=False
    )
    lines = [line for line in done.stderr.splitlines() if "converting:" not in line]
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 1), done.stderr
    assert str(model) in lines[0]
