"""The model's own tokenizer and chat template, with user text that cannot pass for chat structure."""

import itertools
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vr1_jax.data.chat_template import ChatTemplate, TemplateError
from vr1_jax.errors import UserError
from vr1_jax.files import read_json

# Stands for the n-th text while the template is rendered: private-use characters that no template contains.
MARK = "\ue000{}\ue001"
MARK_PATTERN = "\ue000(\\d+)\ue001"
# What transformers reads of a tokenizer besides text files; of all of them only content that ends.
JSON_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "config.json",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class ChatTokenizer:
    """A Hugging Face tokenizer with the ids that the program needs; make one with `load_tokenizer`."""

    hf: Any  # transformers' fast tokenizer
    template: ChatTemplate
    pad_token: int
    end_of_turn: int  # closes every turn of the chat: <|im_end|>
    stop_tokens: tuple[int, ...]  # sampling any of these ends an answer
    image_token: int
    video_token: int
    structure: "re.Pattern[str]"  # the special tokens as text

    def check_fits(self, model_config: Any) -> None:
        """Ids that the model does not know would be read as other tokens, silently."""
        ours, theirs = (self.image_token, self.video_token), (model_config.image_token, model_config.video_token)
        if ours != theirs:
            raise UserError(
                f"{self.hf.name_or_path}: the tokenizer's image and video tokens are {ours}, config.json says "
                f"{theirs}: the two belong to different models"
            )
        if (largest := max(self.hf.get_vocab().values())) >= model_config.text.vocab:
            raise UserError(
                f"{self.hf.name_or_path}: the tokenizer has a token {largest}, the model's vocabulary only "
                f"{model_config.text.vocab} tokens: the two belong to different models"
            )

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
        try:
            rendered = self.template.render(marked, generate)
        except TemplateError as error:
            raise UserError(str(error)) from error
        if sorted(re.findall(MARK_PATTERN, rendered)) != sorted(str(n) for n in range(len(texts))):
            raise UserError("the chat template drops, repeats or alters the text of a message")

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
                    raise UserError("the conversation has more images and videos than visual token counts")
                repeats = counts.pop(0)
            tokens += [token] * repeats
        if counts:
            raise UserError("the conversation has fewer images and videos than visual token counts")
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
        raise UserError(f"{directory}: no tokenizer.json; --model and --tokenizer take a model directory")
    files = {name: read_json(p) if (p := directory / name).is_file() else {} for name in JSON_FILES}
    hf = _transformers_tokenizer(directory)
    special = {str(token): id for id, token in hf.added_tokens_decoder.items() if token.special}
    for name in ("<|image_pad|>", "<|video_pad|>"):
        if name not in special:
            raise UserError(f"{directory}: the tokenizer has no special token {name}; is it a Qwen2.5-VL model?")
    template = hf.chat_template or files["chat_template.json"].get("chat_template")
    for name, value in (
        ("chat_template", template),
        *((n, getattr(hf, n)) for n in ("pad_token_id", "eos_token_id")),
    ):
        if value is None:
            raise UserError(f"{directory}: the tokenizer has no {name}")
    if not isinstance(template, str):
        raise UserError(f"{directory}: chat_template is not a text")
    stop = files["generation_config.json"].get("eos_token_id")
    stop_tokens = stop if isinstance(stop, list) else [hf.eos_token_id if stop is None else stop]
    known = range(max(hf.get_vocab().values()) + 1)
    if not stop_tokens or not all(type(token) is int and token in known for token in stop_tokens):
        raise UserError(
            f"{directory / 'generation_config.json'}: eos_token_id is {reprlib.repr(stop)}, not tokens it has"
        )
    tokenizer = ChatTokenizer(
        hf=hf,
        template=ChatTemplate(template, dict(hf.special_tokens_map)),
        pad_token=hf.pad_token_id,
        end_of_turn=hf.eos_token_id,
        stop_tokens=tuple(stop_tokens),
        image_token=special["<|image_pad|>"],
        video_token=special["<|video_pad|>"],
        structure=re.compile(f"({'|'.join(re.escape(name) for name in sorted(special, reverse=True))})"),
    )
    try:
        _check_template(tokenizer)
    except (TemplateError, UserError) as error:
        raise UserError(f"{directory}: {error}") from error
    return tokenizer


def _transformers_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer, Qwen2_5_VLConfig

    try:
        # With a config of its own, for it would build whatever config.json asks for.
        return AutoTokenizer.from_pretrained(
            directory, config=Qwen2_5_VLConfig(), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the libraries raise every kind for a file that is not what they expect
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{directory}: tokenizer.json and what belongs to it cannot be loaded: {reason}"
        ) from error


def _check_template(tokenizer: ChatTokenizer) -> None:
    """Renders what the program asks: with and without a system turn, an image or a video."""
    usual, text = [], {"type": "text", "text": "x"}
    for system, media in itertools.product(
        ([], [{"role": "system", "content": [text]}]), (None, "image", "video")
    ):
        content = [text] if media is None else [{"type": media}, text]
        usual.append([*system, {"role": "user", "content": content}])
    tokenizer.template.prepare([_with_marks(messages)[0] for messages in usual])
    for messages in usual:
        tokenizer.encode_chat(messages, [1] * (len(messages[-1]["content"]) - 1))
