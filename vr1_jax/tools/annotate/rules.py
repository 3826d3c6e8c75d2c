"""Which sampled rationales become training data, and why the others do not."""

import math
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vr1_jax.data.records import Sample
from vr1_jax.errors import UsageError
from vr1_jax.rewards import accuracy_reward
from vr1_jax.rewards.answers import option_letter, plain_number

# In the order of the rules: the first that an answer breaks is the reason why it is dropped.
REASONS = ("unfinished", "format", "reward", "length", "loop", "contradiction", "duplicate", "surplus")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SHINGLE = 3  # words


@dataclass(frozen=True)
class KeepRules:
    """What a rationale must be to be kept. `None` turns a rule off."""

    min_reward: float = 0.6  # accuracy of the answer, without format and bonuses
    reward_rules: Literal["fixed", "upstream"] = "fixed"
    min_tokens: int = 20  # of the thought
    max_tokens: int = 960  # with tags and answer this fits data.answer_tokens of SFT
    loop_words: int = 5  # a run of so many words counts as repeated when it has stood in the text before
    max_repeated: float | None = 0.2  # share of repeated runs
    check_conclusion: bool = True  # drop thoughts that end on another answer than the one given
    max_similarity: float | None = 0.9  # shared three-word runs of two thoughts about the same question
    max_per_record: int = 1

    def __post_init__(self):
        for name in ("min_reward", "max_repeated", "max_similarity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must lie in 0..1")
        if self.reward_rules not in ("fixed", "upstream"):
            raise UsageError(f"reward_rules is {self.reward_rules!r}; use one of: fixed, upstream")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UsageError(f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}; 0 <= min <= max")
        for name in ("loop_words", "max_per_record"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Draft:
    """One sampled answer."""

    text: str
    tokens: int
    thought_tokens: int  # 0 where the answer has no such part
    stopped: bool  # by a stop token, not by the length limit


@dataclass(frozen=True)
class Rationale:
    """The insides of the two tags, stripped."""

    thought: str
    answer: str

    @property
    def process(self) -> str:
        """As supervised training reads it."""
        return f"<think>{self.thought}</think>"


@dataclass(frozen=True)
class Verdict:
    """What became of a draft: kept with its rationale, or dropped for a reason."""

    reward: float
    rationale: Rationale | None = None
    reason: str | None = None
    detail: str = ""

    def dropped(self, reason: str, detail: str) -> "Verdict":
        return replace(self, reason=reason, detail=detail)


class MalformedAnswer(ValueError):
    """An answer that is not one thought and then one answer; the message says why."""


class Keeper:
    """Judges the drafts of one record after another; what was kept before counts as known."""

    def __init__(self, rules: KeepRules):
        self.rules = rules
        self._known = NearDuplicates(rules.max_similarity) if rules.max_similarity is not None else None

    def judge(self, sample: Sample, drafts: Sequence[Draft]) -> list[Verdict]:
        """One verdict for each draft. The best rewarded come first; where rewards are equal, the order counts."""
        verdicts = [judge_alone(draft, sample, self.rules) for draft in drafts]
        kept = 0
        for n in sorted(range(len(drafts)), key=lambda n: -verdicts[n].reward):
            if (verdict := verdicts[n]).reason is not None:
                continue
            name = f"answer {n} to record {sample.index}"
            if kept == self.rules.max_per_record:
                verdicts[n] = verdict.dropped("surplus", f"the record has {kept} already")
            elif twin := self._known and self._known.find_or_add(sample.problem, verdict.rationale.thought, name):
                verdicts[n] = verdict.dropped("duplicate", f"says the same as {twin}")
            else:
                kept += 1
        return verdicts


def judge_alone(draft: Draft, sample: Sample, rules: KeepRules) -> Verdict:
    """By the rules that look at nothing but the draft and its record."""
    reward = accuracy_reward(draft.text, sample.solution, sample.problem_type, rules=rules.reward_rules)
    verdict = Verdict(reward)
    if not draft.stopped:
        return verdict.dropped("unfinished", f"no end after {draft.tokens} tokens")
    try:
        rationale = split_answer(draft.text)
    except MalformedAnswer as error:
        return verdict.dropped("format", str(error))
    verdict = Verdict(reward, rationale)
    if reward < rules.min_reward:
        return verdict.dropped("reward", f"{reward:.3g} is below {rules.min_reward:g}")
    if not rules.min_tokens <= draft.thought_tokens <= rules.max_tokens:
        limits = f"{rules.min_tokens} to {rules.max_tokens}"
        return verdict.dropped("length", f"a thought of {draft.thought_tokens} tokens, not {limits}")
    repeated = repeated_share(rationale.thought, rules.loop_words)
    if rules.max_repeated is not None and repeated > rules.max_repeated:
        return verdict.dropped("loop", f"{repeated:.0%} of its runs of {rules.loop_words} words are repeated")
    if rules.check_conclusion and (pair := contradiction(rationale, sample.problem_type, sample.options)):
        return verdict.dropped("contradiction", f"the thought concludes {pair[0]}, the answer is {pair[1]}")
    return verdict


def split_answer(text: str) -> Rationale:
    """Of an answer that has each tag once, in order, something in both pairs and nothing around them."""
    for tag in TAGS:
        if (count := text.count(tag)) != 1:
            raise MalformedAnswer(f"has {'more than one' if count else 'no'} {tag}")
    if sorted(TAGS, key=text.find) != list(TAGS):
        raise MalformedAnswer("has its tags in another order")
    if "\N{REPLACEMENT CHARACTER}" in text:
        raise MalformedAnswer("has a broken character")
    before, thought, between, answer, after = re.split("|".join(TAGS), text)
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


class NearDuplicates:
    """Thoughts about the same question that share their three-word runs (Jaccard index >= `threshold`).

    Two such sets have a member in common among the first of each in any fixed order, "first" being all but
    `threshold` of it; so only those are looked up.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._known: dict[tuple[str, ...], list[tuple[str, frozenset[int]]]] = defaultdict(list)
        self._places: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)

    def find_or_add(self, question: str, thought: str, name: str) -> str | None:
        """The name of a known one that says the same; without any, this one is known from now on."""
        key, runs = tuple(_words(question)), _shingles(thought)
        known = self._known[key]
        first = sorted(runs)[: len(runs) - math.ceil(self.threshold * len(runs)) + 1]
        for place in sorted({place for run in first for place in self._places.get((key, run), ())}):
            twin, theirs = known[place]
            if len(runs & theirs) >= self.threshold * len(runs | theirs):
                return twin
        for run in first:
            self._places[key, run].append(len(known))
        known.append((name, runs))
        return None


def _words(text: str) -> list[str]:
    return [unit for unit in units(text) if unit.isalnum()]


def _shingles(text: str) -> frozenset[int]:
    words = _words(text)
    runs = range(max(1, len(words) - SHINGLE + 1))
    return frozenset(zlib.crc32(" ".join(words[start : start + SHINGLE]).encode()) for start in runs)


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
    """The thought's last conclusion and the answer, where both can be read and differ.

    Letters, quantities and transcriptions are compared, free text never.
    """
    for value in reversed(conclusions(rationale.thought)):
        if problem_type == "multiple choice":
            pair = _stated_option(value, options), option_letter(rationale.answer)
            differs = pair[0] != pair[1]
        elif problem_type in ("numerical", "regression"):
            number = _NUMBER.match(value)
            pair = number and plain_number(number[1].rstrip(",")), plain_number(rationale.answer)
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
    said, wanted = (f" {' '.join(_words(text))} " for text in (value, answer))
    return wanted in said


def _same_number(a: float, b: float, problem_type: str) -> bool:
    """To two decimals; estimates of a quantity to a twentieth, for a thought may round."""
    tolerance = 0.05 * max(abs(a), abs(b)) if problem_type == "regression" else 0.0
    return abs(a - b) <= max(tolerance, 0.005)
