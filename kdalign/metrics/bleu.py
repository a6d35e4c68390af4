"""BLEU, chrF and TER by sacreBLEU."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from kdalign.errors import library_errors
from kdalign.metrics.arrays import Array
from kdalign.metrics.counts import Counts, References, map_texts
from kdalign.metrics.edit_distance import translation_edits
from kdalign.metrics.languages import HAN, WITHOUT_BLANKS
from kdalign.metrics.words import space_letters


def ngram_counts(name: str, predictions: Sequence[str], references: References, language: str) -> Counts:
    """Count n-grams for BLEU (Papineni et al. 2002) or chrF (Popović 2015), as in Post 2018.

    The counts are those that sacreBLEU itself adds up for its significance tests.
    """
    from sacrebleu.metrics.chrf import CHRF

    scorer: Any = bleu_of(language) if name == "bleu" else CHRF()
    how = ""
    if name == "bleu" and scorer.tokenizer_signature == "intl":
        predictions, references = map_texts(space_letters, predictions, references)
        how = ", a letter each of scripts without blanks"
    # A row may have fewer references than another: sacreBLEU skips None, while an empty text is a reference.
    by_number = list(zip_longest(*references))
    rows = np.array(scorer._extract_corpus_statistics(list(predictions), by_number), dtype=float)

    def value(sums: Array) -> float:
        return float(scorer._compute_score_from_stats(sums.tolist()).score)

    return Counts(rows, value, f"sacreBLEU {scorer.get_signature()}{how}")


def sentence_bleu(predictions: Sequence[str], references: References, language: str) -> list[float]:
    """Compute each text's own BLEU in per cent, of n-grams as long as the text has any (effective order)."""
    scorer = bleu_of(language)
    scorer.effective_order = True
    if scorer.tokenizer_signature == "intl":
        predictions, references = map_texts(space_letters, predictions, references)
    return [
        float(scorer.sentence_score(text, list(known)).score)
        for text, known in zip(predictions, references, strict=True)
    ]


def ter_counts(predictions: Sequence[str], references: References, language: str) -> Counts:
    """Count edits for TER (Snover et al. 2006) as sacreBLEU does: the fewest over the mean reference length."""
    from sacrebleu.metrics.ter import TER

    scorer = TER()
    rows = []
    for text, known in zip(predictions, references, strict=True):
        words = scorer.tokenizer(text).split()
        right = [scorer.tokenizer(reference).split() for reference in known]
        rows.append((min(translation_edits(words, one) for one in right), sum(map(len, right)) / len(right)))
    numbers = set(map(len, references))
    scorer.num_refs = numbers.pop() if len(numbers) == 1 else -1

    def value(sums: Array) -> float:
        return float(scorer._compute_score_from_stats(sums.tolist()).score)

    return Counts(np.array(rows, dtype=float), value, f"sacreBLEU {scorer.get_signature()}")


def bleu_of(language: str) -> Any:
    """Return sacreBLEU's BLEU with the tokenizer of a language.

    Chinese, Japanese and Korean have their own tokenizers; other languages with spaces between words use ``13a``;
    languages without spaces, and texts of no named language, use ``intl``, which goes by Unicode's character classes.

    Raises:
        UsageError: the package that divides Japanese or Korean is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU

    own = {**dict.fromkeys(HAN, "zh"), "ja": "ja-mecab", "ko": "ko-mecab"}
    tokenizer = own.get(language, "intl" if language in {"", *WITHOUT_BLANKS} else "13a")
    if language not in ("ja", "ko"):
        return BLEU(tokenize=tokenizer, force=True)
    mend = "or ask for chrf and cer, which count characters"
    with library_errors(f"bleu cannot divide texts of language {language!r} into words", mend):
        return BLEU(tokenize=tokenizer, force=True)


def bleu_finds_words(texts: Sequence[str], language: str, least: int) -> Iterator[bool]:
    """Yield for each text whether BLEU's tokenizer finds at least ``least`` words in it."""
    scorer = bleu_of(language)
    for text in texts:
        divided = scorer.tokenizer(space_letters(text) if scorer.tokenizer_signature == "intl" else text)
        yield len(divided.split()) >= least
