"""Metrics of text against references: sacreBLEU, rouge-score and jiwer, as sums over examples.

Every metric is a value of statistics that add up over examples (matched n-grams, edits, scores), so that the corpus
is scored once, an interval resamples rows of numbers, and nothing is averaged that should have been summed.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import numpy as np

from kdalign.errors import UsageError, library_errors, shorten
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Score
from kdalign.metrics.edit_distance import CommonSubsequence, translation_edits
from kdalign.metrics.intervals import sums_interval
from kdalign.metrics.languages import HAN, WITHOUT_BLANKS, language_code
from kdalign.metrics.words import UnicodeWords, is_lost_to_english, is_unspaced, space_letters
from kdalign.registry import resolve

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
        undefined: why the value is NaN, where it is, as a clause.
    """

    rows: Array
    value: Callable[[Array], float]
    signature: str
    resampled: bool = True
    undefined: str = ""


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


def mean_metric(name: str, score: Callable[[str, Sequence[str]], float], unit: str = "", **settings: Any) -> TextMetric:
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
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015), each as Post 2018 has them.

    The counts are those that sacreBLEU itself adds up for its significance tests.
    """
    from sacrebleu.metrics.chrf import CHRF

    scorer: Any = bleu_of(language) if name == "bleu" else CHRF()
    how = ""
    if name == "bleu" and scorer.tokenizer_signature == "intl":
        predictions, references = _all(space_letters, predictions, references)
        how = ", a letter each of scripts without blanks"
    # A row may have fewer references than another: sacreBLEU passes over None alone, an empty text is a reference.
    by_number = list(zip_longest(*references))
    rows = np.array(scorer._extract_corpus_statistics(list(predictions), by_number), dtype=float)

    def value(sums: Array) -> float:
        return float(scorer._compute_score_from_stats(sums.tolist()).score)

    return Counts(rows, value, f"sacreBLEU {scorer.get_signature()}{how}")


def _ter(predictions: Sequence[str], references: References, language: str) -> Counts:
    """TER (Snover et al. 2006) as sacreBLEU has it: the fewest edits, over the mean of the references' lengths."""
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
    """The BLEU of sacreBLEU with the tokenizer of a language.

    These are its own for Chinese, Japanese and Korean, ``13a`` for other languages that have blanks between words, and
    ``intl``, which goes by Unicode's classes of characters, for those without, and where nobody names the language.

    Raises:
        UsageError: the package that divides Japanese or Korean is not there.
    """
    from sacrebleu.metrics.bleu import BLEU

    own = {**dict.fromkeys(HAN, "zh"), "ja": "ja-mecab", "ko": "ko-mecab"}
    tokenizer = own.get(language, "intl" if language in {"", *WITHOUT_BLANKS} else "13a")
    if language not in ("ja", "ko"):
        return BLEU(tokenize=tokenizer, force=True)
    mend = "or ask for chrf and cer, which count characters"
    with library_errors(f"bleu cannot divide texts of language {language!r} into words", mend):
        return BLEU(tokenize=tokenizer, force=True)


def _all(
    change: Callable[[str], str], predictions: Sequence[str], references: References
) -> tuple[list[str], list[list[str]]]:
    """All texts, changed."""
    return [change(text) for text in predictions], [[change(text) for text in known] for known in references]


def _rouge(kind: str, predictions: Sequence[str], references: References, language: str) -> Counts:
    """ROUGE F1 (Lin 2004), the best of several references, mean over examples.

    English is stemmed; other languages, and texts whose language nobody names, are divided into words of Unicode
    letters, which rouge-score's own tokenizer would drop.
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
    return _mean(each, f"rouge_score {version('rouge_score')}, F1, {how}{sentences}")


def _sentences(text: str, tokenizer: Any, lines: bool) -> list[list[str]]:
    """The words of each line, or of the whole as one."""
    return [tokenizer.tokenize(one) for one in (text.split("\n") if lines else [text])]


def _best_overlap(said: list[list[str]], references: Sequence[str], tokenizer: Any, lines: bool) -> float:
    """ROUGE-L's F1 with the reference that gives the most (Lin 2004, sections 3.1 and 3.2), from 0 to 1.

    Its numbers are rouge-score's, whose table of all pairs of words no text of 20,000 has room for.
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
    """Words of a reference that are in a longest common subsequence with any of our sentences, each of ours once."""
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


def _edits(unit: str, normalized: bool, predictions: Sequence[str], references: References, language: str) -> Counts:
    """Edits over the characters or words of the references, the nearest of several; never a mean of rates.

    Words are what white space divides, of whatever kind. Characters are code points, white space inside a text among
    them. Normalised texts have gone through Whisper's normaliser (Radford et al. 2022, arXiv:2212.04356, appendix C):
    its English one without the table of British spellings, its basic one for other languages, which here keeps marks.
    """
    import jiwer

    normal = _normalizer(language) if normalized else str
    process = jiwer.process_characters if unit == "characters" else jiwer.process_words
    rows = []
    for text, known in zip(predictions, references, strict=True):
        # jiwer divides at blanks alone, so that a tab or a line's end would join two words.
        guess = normal(text).strip() if unit == "characters" else " ".join(normal(text).split())
        counted = []
        for reference in known:
            right = normal(reference).strip() if unit == "characters" else " ".join(normal(reference).split())
            if not right:  # of which jiwer gives no rate
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
    return Counts(np.array(rows, dtype=float), _per_cent, made_by, undefined=none)


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
    """Blanks for punctuation and symbols, as Whisper's own has them, but not for marks: a vowel of Hindi is one."""
    composed = unicodedata.normalize("NFKC", text)
    return "".join(" " if unicodedata.category(one)[0] in "PS" else one for one in composed)


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
    none = f"no prediction has {n} word{'s' * (n > 1)}"
    how = f"different {n}-grams of words"
    return Counts(np.array(rows, dtype=float), _per_cent, how, resampled=False, undefined=none)


TEXT_METRICS: Mapping[str, TextMetric] = {
    metric.name: metric
    for metric in (
        TextMetric("bleu", partial(_sacrebleu, "bleu")),
        TextMetric("chrf", partial(_sacrebleu, "chrf")),
        TextMetric("ter", _ter, higher_is_better=False),
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
        raise UsageError(f"metric {name!r} is no TextMetric (kdalign.metrics.text.mean_metric makes one of a function)")
    return found


def score_texts(
    names: Sequence[str], predictions: Sequence[str], references: References, language: str = ""
) -> tuple[list[Score], dict[str, Array]]:
    """Metrics of a corpus, each with its 95 % bootstrap interval over examples, and each example's own value.

    The shipped ones compare texts in Unicode's form NFC, in which an é is one character however it was written; where
    that changes a text, their signatures say so.

    Args:
        names: of metrics.
        predictions: a text each.
        references: one or more a text.
        language: of the texts, a code such as ``en``; decides how words are told apart. By Unicode's rules where it is
            left out.

    Raises:
        UsageError: another number of predictions than of rows of references, no rows, a row without a reference, an
            unknown language, or one whose words cannot be told apart here, two metrics of one name, or one of the
            user's own that fails.
    """
    _check(predictions, references)
    language = language_code(language) if language else ""
    check_words(names, language)
    composed = _all(partial(unicodedata.normalize, "NFC"), predictions, references)
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
                counts.signature + (", texts in NFC" if shipped and not same else ""),
                low,
                high,
                reason=counts.undefined,
            )
        )
        if counts.resampled:
            each[metric.name] = np.array([counts.value(row) for row in counts.rows])
    return scores, each


def check_words(names: Sequence[str], language: str) -> None:
    """Refuse BLEU of a language whose words a package divides that is not there.

    Raises:
        UsageError: it is not; the line names it.
    """
    if "bleu" in names:
        bleu_of(language)


def notes_on_words(
    names: Sequence[str], predictions: Sequence[str], references: References, language: str = ""
) -> tuple[str, ...]:
    """What must be known of texts in which a metric's way of dividing them finds few words or none.

    Args:
        names: of metrics.
        predictions: a text each.
        references: one or more a text.
        language: as ``score_texts`` takes it.
    """
    language = language_code(language) if language else ""
    rows = [(text, *known) for text, known in zip(predictions, references, strict=True)]
    rouge = ", ".join(name for name in names if name.startswith("rouge"))
    counting = [name for name in names if name in _OF_WORDS or (name == "bleu" and language not in _OF_LETTERS)]
    lost = _where(is_lost_to_english, rows) if rouge and language == "en" else ""
    bare = _where(_has_no_words, [known for _, *known in rows], all) if rouge else ""
    joined = _where(is_unspaced, rows) if counting else ""
    short = "bleu" in names and not any(_tokens(predictions, language, 4))
    whole = "rougeLsum" in names and not any("\n" in text.strip() for texts in rows for text in texts)
    notes = {
        f"{rouge}: rules for English drop most letters of texts{lost}; for another language give --language CODE": lost,
        f"{rouge}: the references have no letters or digits{bare}, so that no answer has more than 0 there": bare,
        f"{', '.join(counting)}: texts have no blanks between words{joined}, so that a whole clause counts as one; "
        "cer and chrf count characters": joined,
        "bleu: no prediction has four words, so that it is 0 by its definition, even of equal texts": short,
        "rougeLsum: a sentence is a line, and no text has two": whole,
    }
    return tuple(note for note, told in notes.items() if told)


def _where(
    fits: Callable[[str], bool], rows: Sequence[Sequence[str]], of: Callable[[Iterable[bool]], bool] = any
) -> str:
    """In how many rows one of the texts, or all, are such, and the first of them; nothing where there is none."""
    found = [number for number, texts in enumerate(rows) if of(map(fits, texts))]
    return f" in {len(found):,} of {len(rows):,} rows, the first in row {found[0]}" if found else ""


def _has_no_words(text: str) -> bool:
    return re.search(r"[^\W_]", text) is None


def _tokens(texts: Sequence[str], language: str, least: int) -> Iterator[bool]:
    """Whether BLEU's tokenizer finds so many words in each text."""
    scorer = bleu_of(language)
    for text in texts:
        divided = scorer.tokenizer(space_letters(text) if scorer.tokenizer_signature == "intl" else text)
        yield len(divided.split()) >= least


_OF_WORDS = ("ter", "wer", "wer_normalized", "distinct1", "distinct2")
_OF_LETTERS = frozenset({"", "ko"}) | WITHOUT_BLANKS
"""Languages whose tokenizer of BLEU needs no blanks."""


def _check(predictions: Sequence[str], references: References) -> None:
    if len(predictions) != len(references):
        raise UsageError(f"{len(predictions):,} predictions have {len(references):,} rows of references")
    if len(predictions) == 0:
        raise UsageError("there are no predictions to score")
    for row, (text, known) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(known, str):  # whose letters would be a reference each
            raise UsageError(f"row {row}: the references are a list of texts; given one text, {shorten(known, 60)!r}")
        if len(known) == 0:
            raise UsageError(f"row {row} has no reference")
        other = next((one for one in (text, *known) if not isinstance(one, str)), "")
        if not isinstance(other, str):
            raise UsageError(f"row {row}: predictions and references are texts; given {shorten(repr(other), 60)}")
