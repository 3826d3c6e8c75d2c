"""A checkpoint of ours, exported: transformers gives the same greedy answers to the same prompts."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import load_command
from reference_model import normalize

from vr1_jax.data.collate import EncodedPrompt
from vr1_jax.data.prompts import Presentation
from vr1_jax.data.record_file import RecordFile
from vr1_jax.evaluation.answering import Questions
from vr1_jax.evaluation.batching import Shape, Size
from vr1_jax.evaluation.chat import ChatModel, batch_answers, load_chat_model
from vr1_jax.media.reader import MediaReader
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.weights.conversion import hf_to_flax

GREEDY = SamplingConfig(max_new_tokens=10, temperature=0.0)


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "ours"
    hf_to_flax(tiny_model, out, dtype="float32")
    return out


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    from transformers import Qwen2_5_VLForConditionalGeneration

    command = load_command("convert/flax_to_hf.py")
    out = tmp_path_factory.mktemp("exported") / "hf"
    assert command.main(["--checkpoint", str(checkpoint), "--out", str(out), "--dtype", "float32"]) == 0
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def records(small_world) -> RecordFile:
    """A video, an image and a text."""
    found = {record["data_type"]: record for record in json.loads((small_world / "train.json").read_text())}
    text = {name: value for name, value in found["image"].items() if name != "path"} | {"data_type": "text"}
    path = small_world / "three.json"
    path.write_text(json.dumps([found["video"], found["image"], text]))
    return RecordFile(path)


def test_same_greedy_text(checkpoint, exported, records, small_world, reference):
    # transformers' own generate() places text after a video by its own rule, so ours is asked to as well.
    asked = Presentation(positions="transformers5").evaluated().told(frames=4)
    chat = load_chat_model(checkpoint, presentation=asked)
    questions = Questions(records, small_world / "media", chat)
    with MediaReader(unit=chat.encoder.geometry.unit) as reader:
        asked = [questions.read(number, reader) for number in range(3)]
    assert [question.error for question in asked] == [None] * 3
    size = functools.reduce(Size.union, (Size(question.prompt.bucket) for question in asked)).rounded()
    prompts = [question.prompt for question in asked]
    ours = batch_answers(chat, prompts, range(3), Shape(size, 4), GREEDY, seed=0)
    for prompt, (answer,) in zip(prompts, ours, strict=True):
        theirs = generate(exported, prompt, chat)
        assert answer.token_ids == theirs
        assert answer.text == reference.tokenizer.decode(theirs, skip_special_tokens=True)
    for prompt, (answer,) in zip(prompts[:2], ours, strict=False):
        black = dataclasses.replace(prompt, patches=tuple(np.zeros_like(patches) for patches in prompt.patches))
        assert generate(exported, black, chat) != answer.token_ids


def generate(model, prompt: EncodedPrompt, chat: ChatModel) -> list[int]:
    """transformers' greedy answer, pixels normalised by the test's own arithmetic."""
    image, video = chat.layout.visual_tokens
    tokens = torch.tensor([prompt.tokens.tolist()])
    arguments = {"mm_token_type_ids": (tokens == image).int() + 2 * (tokens == video).int()}
    for block, patches in zip(prompt.blocks, prompt.patches, strict=True):
        kind = "video" if video in tokens else "image"
        pixels = torch.from_numpy(normalize(patches.reshape(-1, patches.shape[-1])))
        arguments[f"{kind}_grid_thw"] = torch.tensor([block.grid])
        arguments["pixel_values_videos" if kind == "video" else "pixel_values"] = pixels
        if kind == "video":
            arguments["second_per_grid_ts"] = torch.tensor([block.seconds_per_slice])
    limit = {"max_new_tokens": GREEDY.max_new_tokens, "do_sample": False}
    return model.generate(input_ids=tokens, **limit, **arguments)[0, tokens.shape[1] :].tolist()
