"""Metrics of text against references: sacreBLEU, rouge-score and jiwer, as sums over examples.

Every metric is a value of statistics that add up over examples (matched n-grams, edits, scores), so that the corpus
is scored once, an interval resamples rows of numbers, and nothing is averaged that should have been summed.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kdalign.errors import UsageError, library_errors, shorten
from kdalign.metrics.arrays import Array
from kdalign.metrics.bleu import bleu_of, ngram_counts, sentence_bleu, ter_counts
from kdalign.metrics.classification import Score
from kdalign.metrics.counts import Counts, References, map_texts, mean_counts, per_cent
from kdalign.metrics.error_rates import edit_counts
from kdalign.metrics.intervals import sums_interval
from kdalign.metrics.languages import language_code
from kdalign.metrics.rouge import rouge_counts
from kdalign.registry import resolve


@dataclass(frozen=True)
class TextMetric:
    """A metric of predicted texts.

    Attributes:
        name: one word.
        count: function of (predictions, references, language) to counts; the language is a code such as ``en``.
    """

    name: str
    count: Callable[[Sequence[str], References, str], Counts]
    unit: str = "%"
    higher_is_better: bool = True


def mean_metric(name: str, score: Callable[[str, Sequence[str]], float], unit: str = "", **settings: Any) -> TextMetric:
    """Make a metric that is the mean of ``score(prediction, references)`` over examples, in ``unit``."""

    def count(predictions: Sequence[str], references: References, language: str) -> Counts:
        each = [score(text, known) for text, known in zip(predictions, references, strict=True)]
        return mean_counts(each, f"mean over examples of {name}")

    return TextMetric(name, count, unit, **settings)


def _exact(predictions: Sequence[str], references: References, language: str) -> Counts:
    each = [text.split() in [one.split() for one in known] for text, known in zip(predictions, references, strict=True)]
    return mean_counts([100.0 * same for same in each], "equal to a reference but for white space")


def _distinct(n: int, predictions: Sequence[str], references: References, language: str) -> Counts:
    """Count distinct n-grams among all n-grams of the predictions (Li et al. 2016, arXiv:1510.03055, section 5.2).

    An example drawn twice brings no new n-gram, so resampling says nothing about the spread.
    """
    grams = [list(zip(*(words[i:] for i in range(n)), strict=False)) for words in map(str.split, predictions)]
    seen: set[tuple[str, ...]] = set()
    rows = []
    for own in grams:
        rows.append((len(set(own) - seen), len(own)))
        seen.update(own)
    none = f"no prediction has {n} word{'s' * (n > 1)}"
    how = f"different {n}-grams of words"
    return Counts(np.array(rows, dtype=float), per_cent, how, resampled=False, undefined=none)


TEXT_METRICS: Mapping[str, TextMetric] = {
    metric.name: metric
    for metric in (
        TextMetric("bleu", partial(ngram_counts, "bleu")),
        TextMetric("chrf", partial(ngram_counts, "chrf")),
        TextMetric("ter", ter_counts, higher_is_better=False),
        *(TextMetric(kind, partial(rouge_counts, kind)) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")),
        TextMetric("cer", partial(edit_counts, "characters", False), higher_is_better=False),
        TextMetric("cer_normalized", partial(edit_counts, "characters", True), higher_is_better=False),
        TextMetric("wer", partial(edit_counts, "words", False), higher_is_better=False),
        TextMetric("wer_normalized", partial(edit_counts, "words", True), higher_is_better=False),
        TextMetric("exact_match", _exact),
        TextMetric("distinct1", partial(_distinct, 1)),
        TextMetric("distinct2", partial(_distinct, 2)),
    )
}


def text_metric(name: str) -> TextMetric:
    """Return a text metric by its name: a shipped one, ``package.module:Name`` or ``file.py:Name``.

    Raises:
        UsageError: no such metric, or it is no ``TextMetric``.
    """
    found = resolve(name, TEXT_METRICS, "metric")
    if not isinstance(found, TextMetric):
        raise UsageError(f"metric {name!r} is not a TextMetric (kdalign.plugins.mean_metric makes one from a function)")
    return found


def score_texts(
    names: Sequence[str], predictions: Sequence[str], references: References, language: str = ""
) -> tuple[list[Score], dict[str, Array]]:
    """Score a corpus by several metrics, with 95 % bootstrap intervals over examples and each example's own values.

    Shipped metrics compare texts in Unicode's form NFC, in which an é is one character however it was written; their
    signatures say so if that changes a text.

    Args:
        names: metrics.
        predictions: one text an example.
        references: one or more texts an example.
        language: code of the texts' language such as ``en``, which decides how words are divided; by Unicode's rules
            if empty.

    Raises:
        UsageError: predictions and rows of references differ in number, no rows, a row without a reference, an unknown
            language or one whose words cannot be divided here, two metrics of one name, or a user's metric that fails.
    """
    _check(predictions, references)
    language = language_code(language) if language else ""
    check_words(names, language)
    composed = _in_nfc(predictions, references)
    same = composed[0] == list(predictions) and composed[1] == [list(known) for known in references]
    scores: list[Score] = []
    each: dict[str, Array] = {}
    for name in names:
        metric = text_metric(name)
        shipped = name in TEXT_METRICS
        if any(score.metric == metric.name for score in scores):
            raise UsageError(f"two metrics are called {metric.name!r}: give your own, {name!r}, another name")
        with nullcontext() if shipped else library_errors(f"metric {name!r} gives no number"):
            counts = metric.count(*(composed if shipped else (predictions, references)), language)
            value = counts.value(counts.rows.sum(axis=0))
            low, high = sums_interval(counts.rows, counts.value) if counts.resampled else (None, None)
        scores.append(
            Score(
                metric.name,
                value,
                metric.unit,
                len(predictions),
                metric.higher_is_better,
                counts.signature + (_IN_NFC if shipped and not same else ""),
                low,
                high,
                reason=counts.undefined,
            )
        )
        if counts.resampled:
            each[metric.name] = np.array([counts.value(row) for row in counts.rows])
    return scores, each


_IN_NFC = ", texts in NFC"


def without_nfc(signature: str) -> str:
    """Return a signature without the remark that texts were composed, which depends on them, not on the metric."""
    return signature.removesuffix(_IN_NFC)


TEXT_BY_TEXT = tuple(name for name in TEXT_METRICS if not name.startswith("distinct"))
"""Metrics of a text by itself; distinct n-grams are counted over a corpus."""


def score_each(
    name: str, predictions: Sequence[str], references: References, language: str = ""
) -> tuple[Array, Counts]:
    """Score each text by itself against its references, in the metric's unit; texts are compared in Unicode's form NFC.

    Args:
        name: one of ``TEXT_BY_TEXT``.
        predictions: one text an example.
        references: one or more texts an example.
        language: code of the texts' language, as in ``score_texts``.

    Returns:
        (examples,), NaN where a value is undefined, and the counts of which the corpus is scored.

    Raises:
        UsageError: as ``score_texts``.
    """
    language = language_code(language) if language else ""
    counts = count_texts(name, predictions, references, language)
    if name == "bleu":
        return np.array(sentence_bleu(*_in_nfc(predictions, references), language)), counts
    return np.array([counts.value(row) for row in counts.rows]), counts


def count_texts(name: str, predictions: Sequence[str], references: References, language: str = "") -> Counts:
    """Count what a shipped metric is computed from, as ``score_texts`` does, example by example.

    Args:
        name: one of ``TEXT_METRICS``.
        predictions: one text an example.
        references: one or more texts an example.
        language: code of the texts' language, as in ``score_texts``.

    Raises:
        UsageError: as ``score_texts``.
    """
    _check(predictions, references)
    language = language_code(language) if language else ""
    check_words((name,), language)
    return TEXT_METRICS[name].count(*_in_nfc(predictions, references), language)


def check_words(names: Sequence[str], language: str) -> None:
    """Refuse BLEU of a language whose tokenizer package is not installed.

    Raises:
        UsageError: the package is missing; the line names it.
    """
    if "bleu" in names:
        bleu_of(language)


def _in_nfc(predictions: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
    """Compose letters and their accents (Unicode's form NFC)."""
    return map_texts(partial(unicodedata.normalize, "NFC"), predictions, references)


def _check(predictions: Sequence[str], references: References) -> None:
    if len(predictions) != len(references):
        raise UsageError(f"{len(predictions):,} predictions have {len(references):,} rows of references")
    if len(predictions) == 0:
        raise UsageError("there are no predictions to score")
    for row, (text, known) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(known, str):  # each letter would be a reference
            raise UsageError(f"row {row}: the references are a list of texts; given one text, {shorten(known, 60)!r}")
        if len(known) == 0:
            raise UsageError(f"row {row} has no reference")
        other = next((one for one in (text, *known) if not isinstance(one, str)), "")
        if not isinstance(other, str):
            raise UsageError(f"row {row}: predictions and references are texts; given {shorten(repr(other), 60)}")
