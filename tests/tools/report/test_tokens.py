"""Pieces of tokens: one for each, together the decoded text, whatever was sampled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1_jax.tools.report.pages import TokenTexts
from vr1_jax.tools.world.model import IDS


@pytest.fixture(scope="session")
def texts(tokenizer_directory):
    return TokenTexts(tokenizer_directory / "tokenizer.json")


def join(pieces):
    return "".join(piece for piece in pieces if isinstance(piece, str))


@settings(deadline=None, max_examples=100)
@given(tokens=st.lists(st.integers(0, max(IDS.values())), max_size=40))
def test_pieces_of_any_tokens_join_to_their_text(texts, tokenizer, tokens):
    pieces = texts.pieces(tokens)
    assert len(pieces) == len(tokens)
    assert join(pieces) == tokenizer.decode(tokens)


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=30))
def test_pieces_of_any_text(texts, tokenizer, text):
    tokens = tokenizer.encode_text(text)
    assert join(texts.pieces(tokens)) == tokenizer.decode(tokens)


def test_a_character_of_several_tokens_belongs_to_the_last(texts, tokenizer):
    tokens = tokenizer.encode_text("a🙂")
    assert len(tokens) > 2
    assert texts.pieces(tokens) == ["a", *[""] * (len(tokens) - 2), "🙂"]


def test_special_tokens_stand_apart(texts, tokenizer):
    tokens = [*tokenizer.encode_text("a"), tokenizer.end_of_turn]
    assert texts.pieces(tokens) == ["a", ["<|im_end|>"]]


@pytest.fixture(scope="session")
def published(shared_data):
    return shared_data / "hf/Qwen2.5-VL-7B-Instruct"


def test_published_tokenizer(published):
    from vr1_jax.data.tokenizer import load_tokenizer

    tokenizer, texts = load_tokenizer(published), TokenTexts(published / "tokenizer.json")
    text = "<think>日本語 🙂🏳️‍🌈 <tool_call> naïve</think>"
    tokens = [*tokenizer.encode_text(text), 151657, tokenizer.end_of_turn]
    assert join(texts.pieces(tokens)) == tokenizer.decode(tokens)
    assert texts.pieces(tokens)[-1] == ["<|im_end|>"]
