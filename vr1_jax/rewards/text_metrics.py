"""How near one text is to another, in [0, 1]: word error rate and ROUGE.

Both are quadratic in words, so neither may read a text of any length: see the two limits below.
"""

import functools

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
    return bool(_BoundedTokenizer().tokenize(text))


class _BoundedTokenizer:
    """ROUGE's own tokenizer on the beginning of a text."""

    def tokenize(self, text: str) -> list[str]:
        return _rouge_tokenizer().tokenize(text[:MAX_ROUGE_CHARACTERS])[:MAX_ROUGE_WORDS]


@functools.cache
def _rouge_tokenizer():
    from rouge_score.tokenizers import DefaultTokenizer  # a second to import

    return DefaultTokenizer(use_stemmer=True)


@functools.cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_BoundedTokenizer())
