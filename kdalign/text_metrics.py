"""Metrics of text against references: sacreBLEU, rouge-score and jiwer, as sums over examples.

Every metric is a value of statistics that add up over examples (matched n-grams, edits, scores), so that the corpus
is scored once, an interval resamples rows of numbers, and nothing is averaged that should have been summed.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import numpy as np
import regex

from kdalign.errors import UsageError
from kdalign.extend import resolve
from kdalign.metrics import Score
from kdalign.statistics import sums_interval

Array = np.ndarray[Any, Any]
References = Sequence[Sequence[str]]
"""One or more references for each example."""


@dataclass(frozen=True)
class Counts:
    """What a metric counts of a corpus.

    Attributes:
        rows: (examples, counts); they add up over examples.
        value: of their sum, in the metric's unit; NaN where it is undefined.
        signature: what counted, library, version and settings.
        resampled: whether drawing examples again estimates the spread of the value.
    """

    rows: Array
    value: Callable[[Array], float]
    signature: str
    resampled: bool = True


@dataclass(frozen=True)
class TextMetric:
    """A metric of predicted texts.

    Attributes:
        name: its one word.
        count: (predictions, references, language) to counts; the language is a code such as ``en``.
    """

    name: str
    count: Callable[[Sequence[str], References, str], Counts]
    unit: str = "%"
    higher_is_better: bool = True


def mean_of(name: str, score: Callable[[str, Sequence[str]], float], unit: str = "", **settings: Any) -> TextMetric:
    """A metric that is the mean of ``score(prediction, references)`` over examples, in ``unit``."""

    def count(predictions: Sequence[str], references: References, language: str) -> Counts:
        each = [score(text, known) for text, known in zip(predictions, references, strict=True)]
        return _mean(each, f"mean over examples of {name}")

    return TextMetric(name, count, unit, **settings)


def _mean(each: Sequence[float], signature: str) -> Counts:
    rows = np.column_stack([np.asarray(each, dtype=float), np.ones(len(each))])
    return Counts(rows, _ratio, signature)


def _ratio(sums: Array) -> float:
    return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")


def _per_cent(sums: Array) -> float:
    return 100.0 * _ratio(sums)


def _sacrebleu(name: str, predictions: Sequence[str], references: References, language: str) -> Counts:
    """BLEU (Papineni et al. 2002), chrF (Popović 2015) and TER (Snover et al. 2006), each as Post 2018 has them.

    The counts are those that sacreBLEU itself adds up for its significance tests.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    makers: dict[str, Callable[[], Any]] = {
        "bleu": lambda: BLEU(trg_lang=language, force=True),
        "chrf": CHRF,
        "ter": TER,
    }
    try:
        scorer = makers[name]()
    except (RuntimeError, ImportError) as error:  # Japanese and Korean need a package of their own
        raise UsageError(f"{name} of language {language!r}: {' '.join(str(error).split())}") from None
    # A row may have fewer references than another: sacreBLEU passes over None alone, an empty text is a reference.
    by_number = list(zip_longest(*references))
    rows = np.array(scorer._extract_corpus_statistics(list(predictions), by_number), dtype=float)

    def value(sums: Array) -> float:
        return float(scorer._compute_score_from_stats(sums.tolist()).score)

    return Counts(rows, value, f"sacreBLEU {scorer.get_signature()}")


def _rouge(kind: str, predictions: Sequence[str], references: References, language: str) -> Counts:
    """ROUGE F1 (Lin 2004), the best of several references, mean over examples.

    English is stemmed; other languages are divided into words of Unicode letters, which rouge-score's own tokenizer
    would drop.
    """
    from rouge_score.rouge_scorer import RougeScorer

    english = language == "en"
    scorer = RougeScorer([kind], use_stemmer=True) if english else RougeScorer([kind], tokenizer=UnicodeWords())
    pairs = zip(predictions, references, strict=True)
    each = [100.0 * scorer.score_multi(list(known), text)[kind].fmeasure for text, known in pairs]
    how = "porter stemmer" if english else UnicodeWords.name
    return _mean(each, f"rouge_score {version('rouge_score')}, F1, {how}")


class UnicodeWords:
    """Words of Unicode letters, digits and marks, case folded; a character each where script has no spaces."""

    name = "unicode words"
    _alone = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    _word = regex.compile(rf"[{_alone}]\p{{M}}*|[^\W_{_alone}](?:[^\W_{_alone}]|\p{{M}})*")

    def tokenize(self, text: str) -> list[str]:
        """Its words."""
        return list(self._word.findall(unicodedata.normalize("NFKC", text).casefold()))


def _edits(unit: str, normalized: bool, predictions: Sequence[str], references: References, language: str) -> Counts:
    """Edits over the characters or words of the references, the nearest of several; never a mean of rates.

    Normalised texts have gone through Whisper's normaliser (Radford et al. 2022, arXiv:2212.04356, appendix C): its
    English one without the table of British spellings, its basic one for other languages.
    """
    import jiwer

    normal = _normalizer(language) if normalized else str
    process = jiwer.process_characters if unit == "characters" else jiwer.process_words
    rows = []
    for text, known in zip(predictions, references, strict=True):
        counted = []
        for reference in known:
            reference, guess = normal(reference), normal(text)
            if not reference.strip():  # of which jiwer gives no rate
                counted.append((len(guess if unit == "characters" else guess.split()), 0))
                continue
            found = process(reference, guess)
            wrong = found.substitutions + found.deletions
            counted.append((wrong + found.insertions, wrong + found.hits))
        rows.append(min(counted, key=lambda one: one[0] / max(one[1], 1)))
    how = f", whisper's {'english' if language == 'en' else 'basic'} normaliser" if normalized else ""
    return Counts(np.array(rows, dtype=float), _per_cent, f"jiwer {version('jiwer')}, edits over {unit}{how}")


def _normalizer(language: str) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    found: Callable[[str], str] = EnglishTextNormalizer({}) if language == "en" else BasicTextNormalizer()
    return found


def _exact(predictions: Sequence[str], references: References, language: str) -> Counts:
    each = [text.split() in [one.split() for one in known] for text, known in zip(predictions, references, strict=True)]
    return _mean([100.0 * same for same in each], "equal to a reference but for white space")


def _distinct(n: int, predictions: Sequence[str], references: References, language: str) -> Counts:
    """Different n-grams over all n-grams of the predictions (Li et al. 2016, arXiv:1510.03055, section 5.2).

    Examples drawn twice bring no new n-gram, so that resampling says nothing of the spread.
    """
    grams = [list(zip(*(words[i:] for i in range(n)), strict=False)) for words in map(str.split, predictions)]
    seen: set[tuple[str, ...]] = set()
    rows = []
    for own in grams:
        rows.append((len(set(own) - seen), len(own)))
        seen.update(own)
    return Counts(np.array(rows, dtype=float), _per_cent, f"different {n}-grams of words", resampled=False)


TEXT_METRICS: Mapping[str, TextMetric] = {
    metric.name: metric
    for metric in (
        TextMetric("bleu", partial(_sacrebleu, "bleu")),
        TextMetric("chrf", partial(_sacrebleu, "chrf")),
        TextMetric("ter", partial(_sacrebleu, "ter"), higher_is_better=False),
        *(TextMetric(kind, partial(_rouge, kind)) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")),
        TextMetric("cer", partial(_edits, "characters", False), higher_is_better=False),
        TextMetric("cer_normalized", partial(_edits, "characters", True), higher_is_better=False),
        TextMetric("wer", partial(_edits, "words", False), higher_is_better=False),
        TextMetric("wer_normalized", partial(_edits, "words", True), higher_is_better=False),
        TextMetric("exact_match", _exact),
        TextMetric("distinct1", partial(_distinct, 1)),
        TextMetric("distinct2", partial(_distinct, 2)),
    )
}


def text_metric(name: str) -> TextMetric:
    """A shipped metric of texts, or the user's own, ``package.module:Name`` or ``file.py:Name``.

    Raises:
        UsageError: there is none, or it is something else.
    """
    found = resolve(name, TEXT_METRICS, "metric")
    if not isinstance(found, TextMetric):
        raise UsageError(f"metric {name!r} is no TextMetric (kdalign.text_metrics.mean_of makes one of a function)")
    return found


def score_texts(
    names: Sequence[str], predictions: Sequence[str], references: References, language: str = "en"
) -> tuple[list[Score], dict[str, Array]]:
    """Metrics of a corpus, each with its 95 % bootstrap interval over examples, and each example's own value.

    Args:
        names: of metrics.
        predictions: a text each.
        references: one or more a text.
        language: of the texts, a code such as ``en``; decides how words are told apart.

    Raises:
        UsageError: another number of predictions than of rows of references, no rows, or a row without a reference.
    """
    _check(predictions, references)
    scores, each = [], {}
    for name in names:
        metric = text_metric(name)
        counts = metric.count(predictions, references, language)
        value = counts.value(counts.rows.sum(axis=0))
        low, high = sums_interval(counts.rows, counts.value) if counts.resampled else (None, None)
        scores.append(
            Score(
                metric.name,
                None if np.isnan(value) else value,
                metric.unit,
                len(predictions),
                metric.higher_is_better,
                counts.signature,
                low,
                high,
            )
        )
        if counts.resampled:
            each[metric.name] = np.array([counts.value(row) for row in counts.rows])
    return scores, each


def _check(predictions: Sequence[str], references: References) -> None:
    if len(predictions) != len(references):
        raise UsageError(f"{len(predictions):,} predictions have {len(references):,} rows of references")
    if not predictions:
        raise UsageError("there are no predictions to score")
    alone = next((row for row, known in enumerate(references) if len(known) == 0), None)
    if alone is not None:
        raise UsageError(f"row {alone} has no reference")
