"""ROUGE by rouge-score, in linear memory for long texts."""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from kdalign.metrics.counts import Counts, References, mean_counts
from kdalign.metrics.edit_distance import CommonSubsequence
from kdalign.metrics.words import UnicodeWords


def rouge_counts(kind: str, predictions: Sequence[str], references: References, language: str) -> Counts:
    """Compute ROUGE F1 (Lin 2004) with the best of several references, as a mean over examples.

    English is stemmed. Texts of other languages, and of no named one, are divided into words of Unicode letters, which
    rouge-score's own tokenizer would drop.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    english, words = language == "en", UnicodeWords(language)
    tokenizer = DefaultTokenizer(use_stemmer=True) if english else words
    pairs = zip(predictions, references, strict=True)
    if kind in ("rougeL", "rougeLsum"):
        lines = kind == "rougeLsum"
        each = [
            100.0 * _best_overlap(_sentences(text, tokenizer, lines), known, tokenizer, lines) for text, known in pairs
        ]
    else:
        scorer = RougeScorer([kind], tokenizer=tokenizer)
        each = [100.0 * scorer.score_multi(list(known), text)[kind].fmeasure for text, known in pairs]
    how = "porter stemmer" if english else words.name
    sentences = ", sentences are lines" if kind == "rougeLsum" else ""
    return mean_counts(each, f"rouge_score {version('rouge_score')}, F1, {how}{sentences}")


def _sentences(text: str, tokenizer: Any, lines: bool) -> list[list[str]]:
    """Words of each line, or of the whole text as one sentence."""
    return [tokenizer.tokenize(one) for one in (text.split("\n") if lines else [text])]


def _best_overlap(said: list[list[str]], references: Sequence[str], tokenizer: Any, lines: bool) -> float:
    """ROUGE-L's F1 with the best reference (Lin 2004, sections 3.1 and 3.2), from 0 to 1.

    The numbers equal rouge-score's, whose table of all pairs of words does not fit in memory for 20,000 words.
    """
    subsequences = [CommonSubsequence(sentence) for sentence in said]
    ours, best = Counter(word for sentence in said for word in sentence), 0.0
    for reference in references:
        right = _sentences(reference, tokenizer, lines)
        hits = _union_hits(subsequences, ours, right) if lines else subsequences[0].length(right[0])
        wanted, given = sum(map(len, right)), ours.total()
        # 2 P R / (P + R) of P = hits / given and R = hits / wanted
        best = max(best, 2 * hits / (given + wanted) if hits else 0.0)
    return best


def _union_hits(said: Sequence[CommonSubsequence], ours: "Counter[str]", right: Sequence[Sequence[str]]) -> int:
    """Words of a reference in a longest common subsequence with any predicted sentence; each predicted word once."""
    left, wanted, hits = Counter(ours), Counter(word for sentence in right for word in sentence), 0
    for sentence in right:
        places: set[int] = set()
        for one in said:
            places.update(one.places(sentence))
        for place in sorted(places):
            word = sentence[place]
            if left[word] > 0 and wanted[word] > 0:
                hits += 1
                left[word] -= 1
                wanted[word] -= 1
    return hits
