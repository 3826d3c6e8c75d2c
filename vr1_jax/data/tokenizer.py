"""The model's own tokenizer and chat template, with user text that cannot pass for chat structure."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Stands for the n-th text while the template is rendered: private-use characters that no template contains.
MARK = "\ue000{}\ue001"
MARK_PATTERN = "\ue000(\\d+)\ue001"


class TokenizerError(ValueError):
    """A tokenizer directory or chat template that cannot be used."""


@dataclass(frozen=True)
class ChatTokenizer:
    """A Hugging Face tokenizer with the ids that the program needs; make one with `load_tokenizer`."""

    hf: Any  # transformers' fast tokenizer
    pad_token: int
    end_of_turn: int  # closes every turn of the chat: <|im_end|>
    stop_tokens: tuple[int, ...]  # sampling any of these ends an answer
    image_token: int
    video_token: int
    structure: "re.Pattern[str]"  # the special tokens as text

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text; "<|im_end|>" in it is ten ordinary characters, never the token."""
        return self.hf.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, special tokens left out."""
        return self.hf.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def encode_chat(
        self, messages: list[dict], visual_tokens: Sequence[int] = (), *, generate: bool = True
    ) -> list[int]:
        """Tokens of a conversation, the n-th image or video filled with `visual_tokens[n]` placeholders.

        The template is rendered around marks instead of the messages' text. So only what the template itself
        wrote becomes special tokens, and a question that contains "<|im_end|>" or "<|image_pad|>" stays a
        question. For text without such strings the tokens equal those of the Hugging Face processor.
        """
        marked, texts = _with_marks(messages)
        rendered = self.hf.apply_chat_template(marked, tokenize=False, add_generation_prompt=generate)
        if sorted(re.findall(MARK_PATTERN, rendered)) != sorted(str(n) for n in range(len(texts))):
            raise TokenizerError("the chat template drops, repeats or alters the text of a message")

        tokens, counts = [], list(visual_tokens)
        # The pattern's group makes the special tokens the odd items of the split.
        for n, piece in enumerate(self.structure.split(rendered)):
            if n % 2 == 0:
                plain = re.sub(MARK_PATTERN, lambda mark: texts[int(mark[1])], piece)
                tokens += self.encode_text(plain)
                continue
            token = self.hf.convert_tokens_to_ids(piece)
            repeats = 1
            if token in (self.image_token, self.video_token):
                if not counts:
                    raise TokenizerError("the conversation has more images and videos than visual token counts")
                repeats = counts.pop(0)
            tokens += [token] * repeats
        if counts:
            raise TokenizerError("the conversation has fewer images and videos than visual token counts")
        return tokens


def _with_marks(messages: list[dict]) -> tuple[list[dict], list[str]]:
    """The messages with every text replaced by a mark, and the texts."""
    texts = []

    def mark(text: str) -> str:
        texts.append(text)
        return MARK.format(len(texts) - 1)

    def mark_content(content: str | list[dict]) -> str | list[dict]:
        if isinstance(content, str):
            return mark(content)
        return [part | {"text": mark(part["text"])} if part["type"] == "text" else part for part in content]

    return [message | {"content": mark_content(message["content"])} for message in messages], texts


def load_tokenizer(directory: str | Path) -> ChatTokenizer:
    """From a model directory in Hugging Face format; nothing is downloaded and no code of it is run."""
    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file():
        raise TokenizerError(f"{directory}: no tokenizer.json; --model and --tokenizer take a model directory")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        _read_json(directory / name)  # transformers' own complaint does not name the file
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if hf.chat_template is None:
        hf.chat_template = _read_json(directory / "chat_template.json").get("chat_template")
    special = {str(token): id for id, token in hf.added_tokens_decoder.items() if token.special}
    for name in ("<|image_pad|>", "<|video_pad|>"):
        if name not in special:
            raise TokenizerError(
                f"{directory}: the tokenizer has no special token {name}; is it a Qwen2.5-VL model?"
            )
    for name in ("chat_template", "pad_token_id", "eos_token_id"):
        if getattr(hf, name) is None:
            raise TokenizerError(f"{directory}: the tokenizer has no {name}")
    stop = _read_json(directory / "generation_config.json").get("eos_token_id", hf.eos_token_id)
    return ChatTokenizer(
        hf=hf,
        pad_token=hf.pad_token_id,
        end_of_turn=hf.eos_token_id,
        stop_tokens=tuple(stop) if isinstance(stop, list) else (stop,),
        image_token=special["<|image_pad|>"],
        video_token=special["<|video_pad|>"],
        structure=re.compile(f"({'|'.join(re.escape(name) for name in sorted(special, reverse=True))})"),
    )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise TokenizerError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: is not a JSON object")
    return content
