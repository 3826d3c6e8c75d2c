"""What each sampled token added to an answer's text."""

import codecs
from collections.abc import Sequence
from pathlib import Path


class TokenTexts:
    """The tokens of a byte-level tokenizer as text; a character may need several tokens."""

    def __init__(self, tokenizer: Path):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token: item.content for token, item in added.items() if item.special}
        self._bytes: dict[int, bytes] = {}

    def pieces(self, tokens: Sequence[int]) -> list[str | list[str]]:
        """One piece for each token, in a list of its own if it is a special token.

        The others join to the decoded text. The first tokens of a character that spans several are empty.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str | list[str]] = []
        plain = -1  # the last piece of text
        for token in tokens:
            if token in self._special:
                pieces.append([self._special[token]])
            else:
                plain = len(pieces)
                pieces.append(decoder.decode(self._as_bytes(token)))
        if plain >= 0:
            pieces[plain] += decoder.decode(b"", final=True)
        return pieces

    def _as_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            name = self._tokenizer.id_to_token(token) or ""
            try:
                self._bytes[token] = bytes(_BYTES[character] for character in name)
            except KeyError:  # an added token stands for itself
                self._bytes[token] = name.encode()
        return self._bytes[token]


def _byte_names() -> dict[str, int]:
    """The character that stands for each byte in the vocabulary: itself if visible, else one from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTES = _byte_names()
