"""Character and word error rates (CER, WER) by jiwer."""

import unicodedata
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np

from kdalign.metrics.counts import Counts, References, per_cent


def edit_counts(
    unit: str, normalized: bool, predictions: Sequence[str], references: References, language: str
) -> Counts:
    """Count edits over the characters or words of the nearest reference, for a rate over the corpus.

    Words are divided by white space of any kind. Characters are code points, including white space inside a text.
    Normalised texts have passed Whisper's normaliser (Radford et al. 2022, arXiv:2212.04356, appendix C): the English
    one without its table of British spellings; for other languages the basic one, which here keeps marks.
    """
    import jiwer

    normal = _normalizer(language) if normalized else str
    process = jiwer.process_characters if unit == "characters" else jiwer.process_words
    rows = []
    for text, known in zip(predictions, references, strict=True):
        # jiwer divides at spaces alone: a tab or line end would join two words.
        guess = normal(text).strip() if unit == "characters" else " ".join(normal(text).split())
        counted = []
        for reference in known:
            right = normal(reference).strip() if unit == "characters" else " ".join(normal(reference).split())
            if not right:  # jiwer gives no rate for an empty reference
                counted.append((len(guess if unit == "characters" else guess.split()), 0))
                continue
            found = process(right, guess)
            wrong = found.substitutions + found.deletions
            counted.append((wrong + found.insertions, wrong + found.hits))
        rows.append(min(counted, key=lambda one: (one[0] / max(one[1], 1), one)))
    how = f", whisper's {'english' if language == 'en' else 'basic'} normaliser" if normalized else ""
    how += ", marks kept" if normalized and language != "en" else ""
    made_by = f"jiwer {version('jiwer')}, edits over {unit}{how}"
    none = f"the references hold no {unit} to count edits over"
    return Counts(np.array(rows, dtype=float), per_cent, made_by, undefined=none)


def _normalizer(language: str) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if language == "en":
        english: Callable[[str], str] = EnglishTextNormalizer({})
        return english
    basic = BasicTextNormalizer()
    basic.clean = _without_symbols
    normal: Callable[[str], str] = basic
    return normal


def _without_symbols(text: str) -> str:
    """Replace punctuation and symbols by spaces as Whisper does, but keep marks: a vowel of Hindi is one."""
    composed = unicodedata.normalize("NFKC", text)
    return "".join(" " if unicodedata.category(one)[0] in "PS" else one for one in composed)
