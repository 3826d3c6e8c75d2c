"""Weights that are no numbers; safetensors files and indices that lie."""

import json
import struct

import numpy as np
import pytest
from hostile_models import DEEP, INDEX, NORM, WEIGHTS, edit, poison
from safetensors.numpy import load_file, save_file


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(model, refused, value):
    poison(model / WEIGHTS, value)
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
