"""Filter generated answers by metrics, lengths, language and ends; choose the best of several; drop duplicates."""

import importlib.util
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from kdalign.data.tasks.columns import is_blank
from kdalign.errors import UsageError, unknown
from kdalign.metrics.arrays import Array
from kdalign.metrics.counts import Counts
from kdalign.metrics.text import TEXT_BY_TEXT, TEXT_METRICS, score_each
from kdalign.metrics.words import UnicodeWords

ENDED, ANY_END = "ended", "any-end"
LENGTHS = ("words", "characters", "ratio", "source_ratio")
"""Measures without a metric: of the answer, and its words over those of the reference or of the source."""
LANGUAGE = "language"
OF_TRANSCRIPTS = "wer_normalized"
"""Measure by which pseudo-labels of speech are filtered (Gandhi et al. 2023, arXiv:2311.00430, section 3)."""
ALONE = ("words", "characters", "source_ratio", LANGUAGE)
"""Measures that need no reference."""
NAMES = (*TEXT_BY_TEXT, *LENGTHS)
_ALL = (*NAMES, LANGUAGE, ENDED, ANY_END)
_SIGNS: Mapping[str, Callable[[Array, float], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class FilterCandidate:
    """An answer that may be kept.

    Attributes:
        row: number of the row that it answers.
        draw: number of the sample.
        prompt: key of its prompt.
        source: text that was answered.
        references: correct answers in the row.
        text: the answer.
        ended: False if the token limit cut it off; None if that is not known.
        cut: True if its prompt lost what the answer should follow.
    """

    row: int
    draw: int
    prompt: str
    source: str
    references: tuple[str, ...]
    text: str
    ended: bool | None
    cut: bool = False


@dataclass(frozen=True)
class AnswerFilter:
    """A bound on a measure of answers, such as ``rougeL>=30``."""

    name: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}"

    def passes(self, values: Array) -> Array:
        """Return for each value of the measure whether it is within the bound; an undefined one is not."""
        within: Array = _SIGNS[self.sign](np.round(values, 9), self.bound)  # 100 * (7 / 100) is above 7
        return within


@dataclass(frozen=True)
class LanguageFilter:
    """A language that answers must be in, ``language=de``; an answer without a letter to tell it by is not.

    Languages are identified by byte n-grams (langid.py, Lui and Baldwin 2012), by all 139 that py3langid knows.
    """

    code: str
    name: ClassVar[str] = LANGUAGE

    def __str__(self) -> str:
        return f"{LANGUAGE}={self.code}"

    def identifies(self, text: str) -> bool:
        """Return whether a text is identified as the language."""
        is_text = any(character.isalpha() for character in text)
        return is_text and bool(_identifier().classify(text)[0] == self.code)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def parse_filters(expressions: Sequence[str]) -> tuple[tuple[AnswerFilter | LanguageFilter, ...], bool]:
    """Parse expressions of ``--keep``.

    Returns:
        The filters, and whether only answers that ended are kept.

    Raises:
        UsageError: an expression of another form, an unknown name, or two that exclude each other.
    """
    words = [expression.strip() for expression in expressions]
    if ENDED in words and ANY_END in words:
        raise UsageError(f"--keep {ENDED} and --keep {ANY_END} exclude each other: give one")
    filters = tuple(_parse(word) for word in words if word not in (ENDED, ANY_END))
    twice = next((one for number, one in enumerate(filters) if one in filters[:number]), None)
    if twice is not None:
        raise UsageError(f"--keep {twice} is given twice")
    return filters, ANY_END not in words


def _parse(word: str) -> AnswerFilter | LanguageFilter:
    name = re.split(r"[<>=!~\s]", word, maxsplit=1)[0]
    if name == LANGUAGE:
        return _parse_language(word)
    found = _FORM.fullmatch(word)
    if found is None:
        if name not in NAMES:
            raise unknown("name in --keep:", name, _ALL)
        raise UsageError(f"--keep {word!r}: give NAME>=NUMBER, or <=, > or <, such as {name}>=30")
    name, sign, text = found.groups()
    if name not in NAMES:
        raise unknown("name in --keep:", name, _ALL)
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise UsageError(f"--keep {word!r}: {text!r} is not a number")
    return AnswerFilter(name, sign, bound)


def _parse_language(word: str) -> LanguageFilter:
    found = re.fullmatch(rf"{LANGUAGE}\s*={{1,2}}\s*(\S+)", word)
    if found is None:
        raise UsageError(f"--keep {word!r}: give {LANGUAGE}=CODE, such as {LANGUAGE}=de")
    if importlib.util.find_spec("py3langid") is None:
        raise UsageError(f"--keep {word} needs a package: pip install 'kdalign[languages]'")
    code, known = found[1].lower(), _identifier().labels
    if code not in known:
        raise UsageError(
            f"--keep {word}: {found[1]!r} is not a language that py3langid knows (accepted: its {len(known)} ISO 639 "
            f"codes, such as de, en, fr, zh)"
        )
    return LanguageFilter(code)


def check_best_of(name: str) -> None:
    """Refuse an unknown metric by which the best answer of a prompt is chosen."""
    if name not in TEXT_BY_TEXT:
        raise unknown("--best-of", name, TEXT_BY_TEXT)


@dataclass(frozen=True)
class MeasuredAnswers:
    """A measure of all candidates, one by one, and as a corpus.

    Attributes:
        name: one of ``NAMES``.
        values: (candidates,) NaN where it is undefined, as an error rate whose reference has no word.
        counts: counts that a metric of several candidates is computed from; None for a length.
    """

    name: str
    values: Array
    counts: Counts | None = None

    def summary(self, kept: Sequence[int]) -> dict[str, Any]:
        """Describe the distribution over all candidates for a record: in the measure's unit, None if undefined.

        Args:
            kept: numbers of the candidates that are kept.
        """
        defined = self.values[np.isfinite(self.values)]
        median, ninetieth = np.percentile(defined, (50, 90)) if len(defined) else (None, None)
        numbers = {"mean": defined.mean() if len(defined) else None, "median": median, "ninetieth": ninetieth}
        if self.counts is not None:
            numbers |= {"corpus": self._corpus(range(len(self.values))), "corpus_kept": self._corpus(kept)}
        return {
            "by": None if self.counts is None else self.counts.signature,
            "undefined": len(self.values) - len(defined),
            **{name: None if value is None else float(value) for name, value in numbers.items()},
        }

    def _corpus(self, numbers: Sequence[int]) -> float | None:
        """Return the metric of some candidates together."""
        assert self.counts is not None, "a metric"
        value = self.counts.value(self.counts.rows[list(numbers)].sum(axis=0))
        return value if math.isfinite(value) else None


def measure(name: str, candidates: Sequence[FilterCandidate], language: str) -> MeasuredAnswers:
    """Measure each candidate: a metric in its unit, or a length (``LENGTHS``).

    A ratio is of words: the answer's over the longest reference's, or over the source's. Words are runs of letters and
    digits; in scripts without spaces, letters.
    """
    texts = [candidate.text for candidate in candidates]
    if name in TEXT_METRICS:
        known = [candidate.references for candidate in candidates]
        return MeasuredAnswers(name, *score_each(name, texts, known, language))
    return MeasuredAnswers(name, _lengths(name, texts, candidates, language))


def _lengths(name: str, texts: Sequence[str], candidates: Sequence[FilterCandidate], language: str) -> Array:
    if name == "characters":
        return np.array([float(len(text)) for text in texts])
    divide = UnicodeWords(language).tokenize
    words = np.array([float(len(divide(text))) for text in texts])
    if name == "words":
        return words
    over = [
        max(len(divide(known)) for known in (one.references if name == "ratio" else (one.source,)))
        for one in candidates
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = words / np.array(over, dtype=float)
    return ratios


@dataclass(frozen=True)
class Selection:
    """Answers that are kept, and why others were not.

    Attributes:
        kept: kept answers, in the order of their rows and draws.
        dropped: for each reason in the order of use, the answers that it dropped and earlier ones had left.
        unknown_ends: kept answers that may have been cut off: the server does not say.
        measures: distribution of each measure over all answers (``MeasuredAnswers.summary``), by name.
    """

    kept: tuple[FilterCandidate, ...]
    dropped: tuple[tuple[str, int], ...]
    unknown_ends: int
    measures: Mapping[str, Mapping[str, Any]]


def select_answers(
    candidates: Sequence[FilterCandidate], keep: Sequence[str] = (), best_of: str | None = None, language: str = ""
) -> Selection:
    """Select answers: to a whole prompt, not empty, ended, within every bound, the best of their row, and none twice.

    Duplicates are answers with the same prompt and the same text; of those that pass, the first is kept. An undefined
    measure is within no bound.

    Args:
        candidates: answers in the order of their rows and draws.
        keep: expressions of ``--keep``.
        best_of: metric by which the best answer of each row is kept alone; all if None.
        language: code of the answers' language, for metrics.

    Raises:
        UsageError: an expression that is not accepted.
    """
    filters, ended = parse_filters(keep)
    names = [each.name for each in filters if isinstance(each, AnswerFilter)] + ([] if best_of is None else [best_of])
    measures = {name: measure(name, candidates, language) for name in dict.fromkeys(names) if candidates}
    dropped: list[tuple[str, int]] = []
    left = list(range(len(candidates)))

    def drop(reason: str, passes: Sequence[bool]) -> None:
        nonlocal left
        kept = [number for number, passed in zip(left, passes, strict=True) if passed]
        dropped.append((reason, len(left) - len(kept)))
        left = kept

    def values(name: str) -> Array:
        return measures[name].values[left] if left else np.zeros(0)

    drop("empty", [not is_blank(candidates[number].text) for number in left])
    if any(one.cut for one in candidates):
        drop("prompt too long", [not candidates[number].cut for number in left])
    if ended:
        drop("not ended", [candidates[number].ended is not False for number in left])
    for each in filters:
        if isinstance(each, LanguageFilter):
            drop(f"not {each}", [each.identifies(candidates[number].text) for number in left])
        else:
            drop(f"not {each}", each.passes(values(each.name)).tolist())
    if best_of is not None:
        drop(f"not the best by {best_of}", _best([candidates[number].row for number in left], values(best_of), best_of))
    first: dict[tuple[str, str], int] = {}
    for number in left:
        first.setdefault((candidates[number].prompt, candidates[number].text), number)
    kept_first = set(first.values())
    drop("duplicate", [number in kept_first for number in left])
    return Selection(
        tuple(candidates[number] for number in left),
        tuple(dropped),
        sum(candidates[number].ended is None for number in left),
        {name: measured.summary(left) for name, measured in measures.items()},
    )


def _best(rows: Sequence[int], scores: Array, name: str) -> list[bool]:
    """Mark the best answer of each row; of equal ones, the first. One whose score is undefined is the worst."""
    scores = np.nan_to_num(scores if TEXT_METRICS[name].higher_is_better else -scores, nan=-np.inf)
    best: dict[int, int] = {}
    for number, row in enumerate(rows):
        if row not in best or scores[number] > scores[best[row]]:
            best[row] = number
    return [best[row] == number for number, row in enumerate(rows)]
