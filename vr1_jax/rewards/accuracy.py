"""The accuracy reward: how right an answer is, in [0, 1], by the type of its problem; and the format reward.

    multiple choice   1 if the answer is the truth's letter
    numerical         1 if both are equal to two decimals and both or neither are written with "." or ","
    OCR               1 - word error rate
    free-form         mean of ROUGE-1, ROUGE-2 and ROUGE-L
    regression        1 - relative error

The rules "upstream" score as Video-R1's published code does. The rules "fixed" differ in these points only:

    case                            upstream                fixed            reason
    ------------------------------  ----------------------  ---------------  -------------------------------
    regression answer "nan"         1.0                     0.0              one word would earn full marks
    regression, truth and answer 0  0.0                     1.0              the answer is right
    regression, exact match         just under 1            1.0              no epsilon where none is needed
    "nan", "inf", "1e999"           numbers                 not numbers      not an answer to any question
    full-width digits, "1_000"      numbers                 not numbers      Python's own notation
    "1,5" against truth 15.0        1.0, commas vanish      0.0              commas only separate thousands
    empty answer, empty truth       1.0 (choice, OCR)       0.0              no answer is never right
    solution without answer tag     empty truth             the whole text   the record's author meant it
    multiple choice, truth "G."     "G" scores 0.0          "G" scores 1.0   the prompt asks for a bare letter
    answer tag within the thinking  it counts               passed over      a thought is not the answer
    free-form, truth without a-z    0.0                     1.0 if equal     ROUGE cannot see other scripts

An answer that is no number scores 0.0 under both (upstream reached that by catching every exception).
Upstream scored a whole batch by its first record's type; here a record always has its own.
"""

import functools
import re
from collections.abc import Callable

from vr1_jax.errors import UserError
from vr1_jax.rewards import answers

# How near one text is to another, in [0, 1]: word error rate and ROUGE.
#
# Both are quadratic in words, so neither may read a text of any length: see the two limits below.

# ROUGE reads the first so many characters and words of a text. A completion is at most 1024 tokens in every
# published setting, which is fewer words; a longer text is compared by its beginning.
MAX_ROUGE_CHARACTERS = 8192
MAX_ROUGE_WORDS = 1024


def word_accuracy(truth: str, text: str) -> float:
    """One minus the word error rate, not below zero.

    An answer of twice as many words as the truth has at least as many errors as the truth has words: its
    score is zero without looking, which bounds the work by the length of the truth.
    """
    truth_words, words = truth.split(), text.split()
    if not truth_words:
        return float(not words)
    if len(words) >= 2 * len(truth_words):
        return 0.0
    import jiwer

    return max(0.0, 1.0 - jiwer.wer(" ".join(truth_words), " ".join(words)))


def rouge(truth: str, text: str) -> float:
    """Mean F measure of ROUGE-1, ROUGE-2 and ROUGE-L on stemmed words."""
    scores = _rouge_scorer().score(truth, text)
    return min(1.0, sum(score.fmeasure for score in scores.values()) / len(scores))


def has_rouge_words(text: str) -> bool:
    """Whether ROUGE sees any word here. It knows only a to z and digits; Chinese text is empty to it."""
    return re.search("[a-z0-9]", text[:MAX_ROUGE_CHARACTERS].lower()) is not None


class _BoundedTokenizer:
    """ROUGE's own tokenizer on the beginning of a text."""

    def __init__(self):
        from rouge_score.tokenizers import DefaultTokenizer  # a second to import

        self._whole = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        return self._whole.tokenize(text[:MAX_ROUGE_CHARACTERS])[:MAX_ROUGE_WORDS]


@functools.cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_BoundedTokenizer())


RULES = ("fixed", "upstream")

_CLOSE_THEN_ANSWER = re.compile(r"</think>\s*+<answer>")


def accuracy_reward(completion: str, solution: str, problem_type: str, *, rules: str = "fixed") -> float:
    """Score in [0, 1] of a completion's answer against the solution's."""
    if rules == "upstream":
        truth, answer = answers.tagged_answer(solution), answers.tagged_answer(completion)
    else:
        truth, answer = answers.true_answer(solution), answers.final_answer(completion)
    return score_answer(truth, answer, problem_type, rules=rules)


def score_answer(truth: str, answer: str, problem_type: str, *, rules: str = "fixed") -> float:
    """Score in [0, 1] of an answer that has been taken out of its tags."""
    check_rules(rules)
    if problem_type not in PROBLEM_TYPES:
        raise UserError(f"unknown problem type {problem_type!r}; use one of: {', '.join(PROBLEM_TYPES)}")
    if rules == "upstream":
        return _UPSTREAM[problem_type](truth, answer)
    return _FIXED[problem_type](truth, answer) if truth and answer else 0.0


def format_reward(completion: str) -> float:
    """1.0 if the completion is, from end to end, one thinking block and then one answer block; else 0.0."""
    if not (completion.startswith("<think>") and completion.endswith("</answer>")):
        return 0.0
    seam = _CLOSE_THEN_ANSWER.search(completion, len("<think>"), len(completion) - len("</answer>"))
    return float(seam is not None)


def check_rules(rules: str) -> None:
    """Refuses a rule set that does not exist."""
    if rules not in RULES:
        raise UserError(f"unknown reward rules {rules!r}; use one of: {', '.join(RULES)}")


def equal_text(truth: str, answer: str) -> float:
    return float(answer == truth)


def equal_option(truth: str, answer: str) -> float:
    """Equal to the truth as written or to its bare letter."""
    return float(answer in (truth, answers.option_letter(truth)))


def equal_number(truth: str, answer: str, *, read: Callable[[str], float | None]) -> float:
    if answers.has_decimal_mark(truth) != answers.has_decimal_mark(answer):
        return 0.0
    expected, given = read(truth), read(answer)
    if expected is None or given is None:
        return 0.0
    return float(round(expected, 2) == round(given, 2))


def near_number(truth: str, answer: str) -> float:
    """One minus the relative error; where the truth is zero only zero is near."""
    expected, given = answers.plain_number(truth), answers.plain_number(answer)
    if expected is None or given is None:
        return 0.0
    if expected == 0:
        return float(given == 0)
    return 1.0 - min(1.0, abs(given - expected) / abs(expected))


def near_number_upstream(truth: str, answer: str) -> float:
    """One minus the relative error with upstream's epsilon, which makes 0 against 0 an error of one."""
    expected, given = answers.python_number(truth), answers.python_number(answer)
    if expected is None or given is None:
        return 0.0
    epsilon = 1e-9
    error = (abs(given - expected) + epsilon) / (abs(expected) + epsilon)
    # Python's max keeps its first argument when the second is nan: an error of nan becomes 0, the score 1.
    return 1.0 - min(1.0, max(0.0, error))


def near_text(truth: str, answer: str) -> float:
    """ROUGE, or plain equality where ROUGE sees no word in the truth."""
    if not has_rouge_words(truth):
        return equal_text(truth, answer)
    return rouge(truth, answer)


_UPSTREAM = {
    "multiple choice": equal_text,
    "numerical": functools.partial(equal_number, read=answers.python_number),
    "OCR": word_accuracy,
    "free-form": rouge,
    "regression": near_number_upstream,
}
_FIXED = {
    "multiple choice": equal_option,
    "numerical": functools.partial(equal_number, read=answers.plain_number),
    "OCR": word_accuracy,
    "free-form": near_text,
    "regression": near_number,
}
PROBLEM_TYPES = tuple(_FIXED)
