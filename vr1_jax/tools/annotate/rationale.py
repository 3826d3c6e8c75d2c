"""What a sampled answer says: its thought and its answer, where it repeats itself, and what it concludes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vr1_jax.rewards.answers import option_letter, plain_number

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class MalformedAnswer(ValueError):
    """An answer that is not one thought and then one answer; the message says why."""


@dataclass(frozen=True)
class Rationale:
    """The insides of the two tags, stripped."""

    thought: str
    answer: str

    @property
    def process(self) -> str:
        """As supervised training reads it."""
        return f"<think>{self.thought}</think>"


def split_answer(text: str) -> Rationale:
    """Of an answer that has each tag once, in order, something in both pairs and nothing around them."""
    places = [text.find(tag) for tag in TAGS]
    for tag, place in zip(TAGS, places, strict=True):
        if place < 0:
            raise MalformedAnswer(f"has no {tag}")
        if text.find(tag, place + 1) >= 0:
            raise MalformedAnswer(f"has more than one {tag}")
    if places != sorted(places):
        raise MalformedAnswer("has its tags in another order")
    if "\N{REPLACEMENT CHARACTER}" in text:
        raise MalformedAnswer("has a broken character")
    before, rest = text.split(TAGS[0])
    thought, rest = rest.split(TAGS[1])
    between, rest = rest.split(TAGS[2])
    answer, after = rest.split(TAGS[3])
    if before.strip() or between.strip() or after.strip():
        raise MalformedAnswer("has text outside its tags")
    if not thought.strip() or not answer.strip():
        raise MalformedAnswer("has nothing between its tags")
    return Rationale(thought.strip(), answer.strip())


_EACH_A_WORD = r"\u3040-\u9fff\uac00-\ud7af"  # scripts that put no space between words
_UNIT = re.compile(rf"[{_EACH_A_WORD}]|[^\W{_EACH_A_WORD}]+|[^\w\s]")


def units(text: str) -> list[str]:
    """Words and signs, without regard to case."""
    return _UNIT.findall(text.casefold())


def repeated_share(text: str, length: int) -> float:
    """How many of the runs of `length` words and signs have stood in the text before, in [0, 1).

    Reasoning that comes back to its words stays below a tenth; a text that turns in a loop comes near one.
    """
    words = units(text)
    runs = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


# "The answer is ..", "option B is correct", "I choose ..", "\boxed{B}"; what no group names follows.
_CLAIMS = (
    r"\b(?:answer|option|choice)(?:\s+(?:is|must be|should be|would be|will be|has to be)\b|[\s*_]*[:=])",
    r"\b(?:option|choice|answer)\s+(?P<named>\(?[A-Z]\)?)\s+(?:is|must be|seems|looks)(?: the)? "
    r"(?:correct|right|best|answer)\b",
    r"\bI(?:'ll|\s+will|\s+would|\s+have to)?\s+(?:choose|pick|select|go with)\b",
    r"\\boxed\{(?P<boxed>[^{}]*)\}",
)
_CLAIM = re.compile("|".join(f"(?:{claim})" for claim in _CLAIMS), re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_OPEN = re.compile(
    r"\b(?:if|whether|unless|suppose|assuming|could|might|may|maybe|perhaps|wrong)\b", re.IGNORECASE
)
_WRAPPING = " \t\"'`*_([{<“‘"
# "A" and "I" are words too: they are letters only before a sign or the end.
_LETTER = re.compile(
    r"(?:option\s+|choice\s+)?\(?([B-HJ-Z](?![A-Za-z'])|[AI](?=[^\w\s']|\s*$|\s+(?:because|since)\b))"
)
_NUMBER = re.compile(r"(?:about|approximately|around|roughly|exactly)?\s*[$€£]?([+-]?\d[\d,]*(?:\.\d+)?)")
_LABELLED = re.compile(r"\s*\(?([A-Z])[).:]\s*(.*)", re.DOTALL)


def conclusions(thought: str) -> list[str]:
    """What each sentence that names an answer names. Questions and suppositions name none."""
    found = []
    for sentence in _SENTENCE_END.split(thought):
        claims = list(_CLAIM.finditer(sentence))
        if not claims or sentence.rstrip().endswith("?") or _OPEN.search(sentence):
            continue
        last = claims[-1]
        value = (last["named"] or last["boxed"] or sentence[last.end() :]).lstrip(_WRAPPING)
        if value and not re.match(r"(?:not|n't|never|neither)\b", value):
            found.append(value)
    return found


def contradiction(rationale: Rationale, problem_type: str, options: Sequence[str] = ()) -> tuple[str, str] | None:
    """The thought's conclusion and the answer, where both can be read and differ.

    The last conclusion counts. Letters, quantities and transcriptions are compared, free text never.
    """
    for value in reversed(conclusions(rationale.thought)):
        if problem_type == "multiple choice":
            pair = _stated_option(value, options), option_letter(rationale.answer)
            differs = pair[0] != pair[1]
        elif problem_type in ("numerical", "regression"):
            pair = _stated_number(value), plain_number(rationale.answer)
            differs = None not in pair and not _same_number(*pair, problem_type)
        elif problem_type == "OCR":
            pair = value, rationale.answer
            differs = not _says(value, rationale.answer)
        else:
            return None
        if None not in pair:
            return (str(pair[0]), str(pair[1])) if differs else None
    return None


def _stated_option(value: str, options: Sequence[str]) -> str | None:
    """The letter that a conclusion names, or that of the option which it repeats."""
    letters = {}
    for place, option in enumerate(options):
        label = _LABELLED.fullmatch(option)
        letter, text = label.groups() if label else (chr(ord("A") + place), option)
        letters[letter] = text.strip().rstrip(".").casefold()
    found = _LETTER.match(value)
    if found:
        return found[1] if found[1] in letters else None
    said = value.casefold()
    repeated = [
        (len(text), letter)
        for letter, text in letters.items()
        if text and said.startswith(text) and not said[len(text) : len(text) + 1].isalnum()
    ]
    return max(repeated)[1] if repeated else None


def _says(value: str, answer: str) -> bool:
    """Whether the answer's words stand in the conclusion."""
    said, wanted = (f" {' '.join(unit for unit in units(text) if unit.isalnum())} " for text in (value, answer))
    return wanted in said


def _stated_number(value: str) -> float | None:
    found = _NUMBER.match(value)
    return plain_number(found[1].rstrip(",")) if found else None


def _same_number(a: float, b: float, problem_type: str) -> bool:
    """To two decimals; estimates of a quantity to a twentieth, for a thought may round."""
    tolerance = 0.05 * max(abs(a), abs(b)) if problem_type == "regression" else 0.0
    return abs(a - b) <= max(tolerance, 0.005)
