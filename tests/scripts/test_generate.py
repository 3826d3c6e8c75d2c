"""Answers of the command: the same tokens as transformers when greedy, the same text streamed or not."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.data.prompts import ANSWER_FORM, PONDER, TRAINING_TAGS
from vr1_jax.data.tokenizer import load_tokenizer

QUESTION = "Which way does the square move?"
LENGTH = 12


@pytest.fixture(scope="session")
def command(load_command):
    return load_command("generate")


@pytest.fixture
def ask(command, tiny_model, capsys):
    """Arguments -> the JSON object, or with `plain` what is printed."""

    def call(*more, plain=False):
        arguments = ["--model", str(tiny_model), "--question", QUESTION, "--max-new-tokens", str(LENGTH)]
        assert command.main([*arguments, *map(str, more), *([] if plain else ["--json"])]) == 0
        printed = capsys.readouterr().out
        return printed if plain else json.loads(printed)

    return call


@pytest.fixture(scope="session")
def media(small_world) -> dict[str, Path]:
    records = json.loads((small_world / "train.json").read_text())
    return {record["data_type"]: small_world / "media" / record["path"] for record in records}


def assert_greedy(reference, seen, user_text: str, found: dict) -> tuple[list[int], dict]:
    """Every token is the one that transformers finds most likely after those before it."""
    prompt = reference.prompt(user_text, seen)
    (answer,) = found["completions"]
    tokens = answer["token_ids"]
    logps = reference.logps(prompt, seen, tokens)
    assert logps.argmax(-1).tolist() == tokens
    assert answer["logprobs"] == pytest.approx(logps.max(-1).tolist(), abs=1e-4)
    assert answer["text"] == reference.tokenizer.decode(tokens, skip_special_tokens=True)
    assert found["prompt_tokens"] == len(prompt[0])
    stop = reference.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert answer["stopped"] == (tokens[-1] in stop)
    assert answer["stopped"] or len(tokens) == LENGTH
    assert not set(tokens[:-1]) & set(stop)
    return prompt


@pytest.mark.parametrize("kind", ["video", "image", "text"])
def test_greedy_is_transformers_greedy(ask, reference, see, media, kind):
    seen = None if kind == "text" else see(media[kind], frames=4)
    found = ask("--greedy", "--frames", 4, *([] if seen is None else [f"--{kind}", media[kind]]))
    tokens, arguments = assert_greedy(reference, seen, QUESTION, found)
    if kind != "video":  # both rules of positions agree, so that its own generate() can be asked
        is_image = torch.tensor([[int(token == reference.layout.visual_tokens[0]) for token in tokens]])
        generated = reference.model.generate(
            input_ids=torch.tensor([tokens]),
            mm_token_type_ids=is_image,
            max_new_tokens=LENGTH,
            do_sample=False,
            **arguments,
        )
        assert generated[0, len(tokens) :].tolist() == found["completions"][0]["token_ids"]


def test_the_rule_of_positions_is_followed(ask, reference, see, small_world):
    """Twenty seconds in two frames: here the rules part, and each agrees with its own reference only."""
    path = small_world / "media/slow.mp4"
    seen = see(path, frames=4)
    for rule, other in (("published", "transformers5"), ("transformers5", "published")):
        found = ask("--greedy", "--frames", 4, "--video", path, "--positions", rule)
        prompt = reference.prompt(QUESTION, seen)
        (answer,) = found["completions"]
        for compared, agrees in ((rule, True), (other, False)):
            logps = reference.logps(prompt, seen, answer["token_ids"], compared)
            chosen = logps[range(len(logps)), answer["token_ids"]]
            assert (abs(chosen - answer["logprobs"]).max() < 1e-4) == agrees


def test_what_was_seen_is_reported(ask, media):
    found = ask("--video", media["video"], "--frames", 4, "--greedy")
    seen = found["media"]
    assert (seen["size"], seen["grid"], seen["reader"]) == ([336, 336], [2, 24, 24], "decord")
    assert seen["frames"] == [0, 2, 5, 7]
    assert seen["timestamps"] == [0.0, 1.0, 2.5, 3.5]
    assert found["seed"] == 0
    assert found["seconds"] > 0


def test_problem_type_asks_as_training_does(ask, reference):
    options = ["A. left", "B. right"]
    text = f"{QUESTION}Options:\nA. left\nB. right\n\n{PONDER}{TRAINING_TAGS}{ANSWER_FORM['multiple choice']}"
    found = ask("--greedy", "--problem-type", "multiple choice", "--options", *options)
    assert_greedy(reference, None, text, found)


def test_sampling(ask):
    hot = ("--n", 3, "--temperature", 1.5, "--top-p", 1)
    drawn = ask(*hot, "--seed", 5)["completions"]
    assert len({tuple(answer["token_ids"]) for answer in drawn}) == 3
    assert ask(*hot, "--seed", 5)["completions"] == drawn
    other = ask(*hot, "--seed", 6)["completions"]
    assert [a["token_ids"] for a in other] != [a["token_ids"] for a in drawn]
    texts = [answer["text"] for answer in drawn]
    assert ask(*hot, "--seed", 5, plain=True) == "".join(f"[{n}]\n{text}\n" for n, text in enumerate(texts, 1))


@pytest.mark.parametrize("choice", [("--greedy",), ("--seed", "3"), ("--n", "3", "--temperature", "1.5")])
def test_streaming_shows_the_same_text(command, ask, tiny_model, monkeypatch, choice):
    class Terminal(io.StringIO):
        writes = 0

        def isatty(self):
            return True

        def write(self, text):
            self.writes += bool(text)
            return super().write(text)

    plain = ask(*choice, plain=True)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    arguments = ["--model", str(tiny_model), "--question", QUESTION, "--max-new-tokens", str(LENGTH), *choice]
    assert command.main(arguments) == 0
    assert terminal.getvalue() == plain
    assert terminal.writes > 2


@pytest.fixture(scope="session")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


def test_a_character_across_tokens_appears_whole(tokenizer):
    from vr1_jax.evaluation.chat import TextStream

    tokens = tokenizer.encode_text("é🐞 3 ≤ 4")
    assert len(tokens) > len("é🐞 3 ≤ 4")  # the small vocabulary spells these in bytes
    stream = TextStream(tokenizer)
    pieces = [stream.update(tokens[: n + 1]) for n in range(len(tokens))]
    assert "".join(pieces) == "é🐞 3 ≤ 4"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_pieces_make_the_whole(tokenizer, data):
    """Any tokens, broken characters too, in steps of any length."""
    from vr1_jax.evaluation.chat import TextStream

    tokens = data.draw(st.lists(st.integers(0, len(tokenizer.hf) - 1) | st.integers(0, 255), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=8)))
    stream = TextStream(tokenizer)
    shown = "".join(stream.update(tokens[:cut]) for cut in cuts) + stream.update(tokens, last=True)
    assert shown == tokenizer.decode(tokens)


def test_wrong_usage(command, tiny_model, media, capsys):
    usual = ["--model", str(tiny_model), "--question", QUESTION]
    for more, reason in (
        (["--greedy", "--temperature", "0.5"], "--greedy"),
        (["--greedy", "--top-p", "0.5"], "--greedy"),
        (["--video", str(media["video"]), "--image", str(media["image"])], "not allowed with"),
        (["--problem-type", "multiple choice"], "--options"),
        (["--options", "A", "B"], "--options"),
        (["--problem-type", "riddle"], "invalid choice"),
        (["--n", "0"], "--n"),
        (["--seed", "-1"], "--seed"),
        (["--temperature", "nan"], "not a finite number"),
        (["--question", "\udcff"], "UTF-8"),
        (["--n", "1000000000"], "at most 1024"),
        (["--max-new-tokens", "1000000000"], "at most 32768"),
        (["--question", " "], "is empty"),
    ):
        assert command.main([*usual, *more]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
    for more, reason in (
        (["--top-p", "1.5"], "top_p"),
        (["--temperature", "-1"], "temperature"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--frames", "1"], "--frames"),
    ):
        assert command.main([*usual, *more]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1


def test_failures_are_one_line(command, tiny_model, small_world, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "folder").mkdir()
    for more, reason in (
        (["--video", tmp_path / "nowhere.mp4"], "nowhere.mp4: no such file"),
        (["--video", tmp_path / "broken.mp4"], "broken.mp4"),
        (["--video", tmp_path / "folder"], "no frames"),
        (["--image", tmp_path / "broken.mp4"], "broken.mp4"),
        (["--image", tmp_path / "folder"], "folder"),
        (["--model", tmp_path / "nowhere"], "nowhere: no such file"),
        (["--model", tmp_path / "folder"], "no tokenizer.json"),
        (["--model", tmp_path / "broken.mp4"], "no such directory"),
        (["--model", small_world / "tiny"], "neither model.safetensors"),
    ):
        arguments = ["--model", tiny_model, "--question", QUESTION, *more]
        assert command.main([str(argument) for argument in arguments]) == 1
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["generate", "score"])
def test_help_imports_nothing_slow(load_command, name):
    script = load_command(name).__file__
    watch = f"""
import runpy, sys
sys.argv = ["{name}", "--help"]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0
assert not {{"numpy", "jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
