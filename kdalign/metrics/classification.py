"""Metrics of classes and scores by name: accuracy, F1, Matthews, calibration error, correlations.

They are plain functions of predictions and references, in per cent, computed by scikit-learn and scipy.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from kdalign.errors import UsageError, library_errors
from kdalign.metrics.arrays import Array
from kdalign.metrics.retrieval import DEPTHS, IMAGE_TO_TEXT, TEXT_TO_IMAGE, agree, agree_weighted, are_ranks, recall
from kdalign.registry import resolve

UNDEFINED = "nothing says why"
"""Reason of an undefined score in files of versions that kept no reasons."""


@dataclass(frozen=True)
class Score:
    """A metric's value with its unit, interval, number of examples and signature.

    NaN and infinite values become None, so that no file, table, mean or gate meets one. ``reason`` then says why; it
    is empty if there is a value.

    Attributes:
        metric: the metric's name.
        value: in ``unit``; None if undefined (a correlation with a constant).
        low: lower end of the 95 % interval, if one was computed.
        high: upper end of the interval.
        n: number of examples.
        signature: library and version that computed it.
        mark: a word shown with it in a table, such as ``pseudo`` for a pseudo-perplexity.
        reason: why there is no value, as a clause.
        note: what a reader must know about the value, as a clause: the class that it is for, or a convention by which
            it is 0.
    """

    metric: str
    value: float | None
    unit: str
    n: int
    higher_is_better: bool
    signature: str
    low: float | None = None
    high: float | None = None
    mark: str = ""
    reason: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        defined = self.value is not None and math.isfinite(self.value)
        ends = (self.low, self.high)
        bounded = defined and all(end is not None and math.isfinite(end) for end in ends)
        checked = {
            "value": self.value if defined else None,
            "low": self.low if bounded else None,
            "high": self.high if bounded else None,
            "reason": "" if defined else self.reason or _unknown(self.value),
            "note": self.note if defined else "",
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the way of a frozen dataclass

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Score":
        """Read a score from a dictionary; keys of other versions are left out."""
        return cls(**{one.name: tree[one.name] for one in fields(cls) if one.name in tree})


def _unknown(value: float | None) -> str:
    return UNDEFINED if value is None else f"the metric gives {value:g}"


@dataclass(frozen=True)
class Metric:
    """A metric over a whole split.

    Attributes:
        name: one word.
        compute: function of (predictions, references) to a value, NaN if undefined. Predictions are class numbers, or
            real numbers for regression.
        library: name of the library that computes it.
        regression: true for metrics of scores instead of classes.
        binary: true for metrics of two classes only.
        of_counts: function of confusion counts (resamples, reference class, predicted class) to values (resamples,),
            for metrics of classes: an interval then needs no thousand calls of a library.
        of_rows: function of (rows (resamples, examples), predictions, references) to values (resamples,), for metrics
            of sums over examples: what is the same in every resample is then computed once.
        of_logits: true if it takes logits (examples, classes) instead of class numbers.
        of_weights: function of (weights (resamples, examples), predictions, references) to values (resamples,), for
            examples that count several times or not at all.
        why_undefined: function of (predictions, references) to the reason for a NaN.
        convention: function of (predictions, references) to a note on the value, such as that it is 0 by convention;
            empty if there is none.
    """

    name: str
    compute: Callable[[Array, Array], float]
    library: str
    regression: bool = False
    binary: bool = False
    unit: str = "%"
    higher_is_better: bool = True
    of_counts: Callable[[Array], Array] | None = None
    of_rows: Callable[[Array, Array, Array], Array] | None = None
    of_logits: bool = False
    of_weights: Callable[[Array, Array, Array], Array] | None = None
    why_undefined: Callable[[Array, Array], str] | None = None
    convention: Callable[[Array, Array], str] | None = None


def _accuracy(predictions: Array, references: Array) -> float:
    return 100.0 * float(np.mean(predictions == references))


def _f1(predictions: Array, references: Array) -> float:
    from sklearn.metrics import f1_score

    return 100.0 * float(f1_score(references, predictions, pos_label=1, average="binary", zero_division=0))


def _macro_f1(predictions: Array, references: Array) -> float:
    from sklearn.metrics import f1_score

    return 100.0 * float(f1_score(references, predictions, average="macro", zero_division=0))


def _matthews(predictions: Array, references: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len(np.union1d(predictions, references)) < 2:
        return 0.0  # as scikit-learn has it, which also warns
    return 100.0 * float(matthews_corrcoef(references, predictions))


def _pearson(predictions: Array, references: Array) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, references)


def _spearman(predictions: Array, references: Array) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, references)


def _correlation(function: Callable[..., Any], predictions: Array, references: Array) -> float:
    if _why_no_correlation(predictions, references):
        return float("nan")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the score's reason says it
        return 100.0 * float(function(predictions, references).statistic)


def _why_no_correlation(predictions: Array, references: Array) -> str:
    """Reason why two columns have no correlation; empty if they have one."""
    if len(predictions) < 2:
        return "one example has no correlation"
    alike = {"predictions": predictions, "references": references}
    alike = {name: values for name, values in alike.items() if is_constant(values)}
    if not alike:
        return ""
    told = " and ".join(f"all {len(values):,} {name} are {float(values[0]):.4g}" for name, values in alike.items())
    return f"{told}, and a constant has no correlation"


def is_constant(values: Array) -> bool:
    """Return whether numbers differ by no more than rounding, so that a correlation would be noise."""
    with np.errstate(over="ignore"):  # an infinite spread is not a constant
        spread = float(np.ptp(values))
    rounding = 8 * np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    if values.dtype == np.float64:
        rounding = 1e-13  # cosines and sums of many products
    return spread <= rounding * float(np.max(np.abs(values)))


BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Accuracy of a classifier by its confidence, in 15 equal bins (0, 1/15], (1/15, 2/15], ...

    Attributes:
        counts: (bins,) number of examples.
        confidence: (bins,) their mean confidence; NaN in an empty bin.
        accuracy: (bins,) share of them that is right; NaN in an empty bin.
    """

    counts: Array
    confidence: Array
    accuracy: Array

    @property
    def error(self) -> float:
        r"""Expected calibration error in per cent: :math:`\sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|`.

        Guo et al. 2017, arXiv:1706.04599, equation 3.
        """
        gaps = self.counts * np.abs(self.accuracy - self.confidence)
        return 100.0 * float(np.nansum(gaps) / self.counts.sum())


def softmax(logits: Array) -> Array:
    """Turn logits (examples, classes) into probabilities, in their own precision."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = raised / raised.sum(axis=1, keepdims=True)
    return probabilities


def confidences(logits: Array) -> Array:
    """Return each row's greatest probability, from logits (examples, classes) to (examples,), in float64."""
    greatest: Array = softmax(logits.astype(np.float64)).max(axis=1)
    return greatest


def reliability_bins(logits: Array, references: Array) -> Reliability:
    """Bin a classifier's predictions, logits (examples, classes), by confidence."""
    counts, confidence, accuracy = _bin_rows(np.arange(len(logits))[None], logits, references)
    return Reliability(counts[0], confidence[0], accuracy[0])


def _bin_rows(rows: Array, logits: Array, references: Array) -> tuple[Array, Array, Array]:
    """Bin rows (resamples, examples) by confidence: numbers, mean confidences, accuracies, each (resamples, bins)."""
    confidence = confidences(logits)
    right = logits.argmax(axis=1) == references
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    cells = (len(rows), BINS)
    places = (bins[rows] + BINS * np.arange(len(rows))[:, None]).ravel()
    counts = np.bincount(places, minlength=math.prod(cells)).reshape(cells)
    sums = [np.bincount(places, each[rows].ravel(), math.prod(cells)).reshape(cells) for each in (confidence, right)]
    means = [np.divide(each, counts, out=np.full(cells, np.nan), where=counts > 0) for each in sums]
    return counts, *means


def _calibration_error(logits: Array, references: Array) -> float:
    return reliability_bins(logits, references).error


def _calibration_errors(rows: Array, logits: Array, references: Array) -> Array:
    logits = np.ascontiguousarray(logits)  # as rows that are taken from it: sums of many classes depend on the layout
    counts, confidence, accuracy = _bin_rows(rows, logits, references)
    values: Array = 100.0 * (np.nansum(counts * np.abs(accuracy - confidence), axis=1) / counts.sum(axis=1))
    return values


def _accuracy_of_counts(counts: Array) -> Array:
    values: Array = 100.0 * np.trace(counts, axis1=1, axis2=2) / counts.sum(axis=(1, 2))
    return values


def _f1_of_counts(counts: Array) -> Array:
    return 100.0 * _class_f1(counts)[:, 1]


def _macro_f1_of_counts(counts: Array) -> Array:
    present = counts.sum(axis=1) + counts.sum(axis=2) > 0
    mean: Array = np.sum(_class_f1(counts) * present, axis=1) / present.sum(axis=1)
    return 100.0 * mean


def _class_f1(counts: Array) -> Array:
    """2 TP / (2 TP + FP + FN) of every class, 0 for an absent class."""
    hits = np.diagonal(counts, axis1=1, axis2=2)
    seen = counts.sum(axis=1) + counts.sum(axis=2)
    values: Array = 2 * hits / np.maximum(seen, 1)
    return values


def _matthews_of_counts(counts: Array) -> Array:
    """Gorodkin's R_K (2004), which is Matthews' coefficient for two classes; 0 if only one class occurs."""
    n = counts.sum(axis=(1, 2)).astype(float)
    true, predicted = counts.sum(axis=2).astype(float), counts.sum(axis=1).astype(float)
    covariance = np.trace(counts, axis1=1, axis2=2) * n - np.sum(true * predicted, axis=1)
    size = np.sqrt((n**2 - np.sum(true**2, axis=1)) * (n**2 - np.sum(predicted**2, axis=1)))
    values: Array = np.divide(covariance, size, out=np.zeros_like(size), where=size > 0)
    return 100.0 * values


def _pearson_of_weights(weights: Array, predictions: Array, references: Array) -> Array:
    if is_constant(predictions) or is_constant(references):
        return np.full(len(weights), np.nan)
    return _correlations(weights, _scaled(predictions)[None], _scaled(references)[None])


def _scaled(values: Array) -> Array:
    """Scale to 0 to 1, which leaves correlations as they are: a constant is then detected in any unit."""
    values = np.asarray(values, float)
    values = values / np.abs(values).max()  # so that no difference overflows
    scaled: Array = (values - values.min()) / np.ptp(values)
    return scaled


def _spearman_of_weights(weights: Array, predictions: Array, references: Array) -> Array:
    if is_constant(predictions) or is_constant(references):
        return np.full(len(weights), np.nan)
    return _correlations(weights, _ranks(weights, predictions), _ranks(weights, references))


def _ranks(weights: Array, values: Array) -> Array:
    """Ranks (resamples, examples) of values that each occur ``weights`` times; equal values share a rank."""
    order = np.argsort(values, kind="stable")
    _, group, alike = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(alike) - alike
    there = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Array = np.cumsum(there, axis=1) - there + (there + 1) / 2
    return ranks[:, group]


def _correlations(weights: Array, first: Array, second: Array) -> Array:
    """Pearson's correlation under weights, (resamples,), in per cent; NaN if one of them is constant."""
    n = weights.sum(axis=1, keepdims=True)
    first = first - np.sum(weights * first, axis=1, keepdims=True) / n
    second = second - np.sum(weights * second, axis=1, keepdims=True) / n
    squares = [np.sum(weights * one * one, axis=1) for one in (first, second)]
    size, product = np.sqrt(squares[0] * squares[1]), np.sum(weights * first * second, axis=1)
    values: Array = np.divide(product, size, out=np.full_like(size, np.nan), where=size > 1e-12 * n[:, 0])
    return 100.0 * values


def _f1_convention(predictions: Array, references: Array) -> str:
    if np.any(predictions == 1) or np.any(references == 1):
        return ""
    return "0 by convention: its class is neither predicted nor in the references"


def _matthews_convention(predictions: Array, references: Array) -> str:
    columns = {"predictions": predictions, "references": references}
    alike = [name for name, values in columns.items() if len(np.unique(values)) == 1]
    return f"0 by convention: the {' and the '.join(alike)} are of one class alone" if alike else ""


def _correlating(name: str, compute: Callable[[Array, Array], float], of_weights: Callable[..., Array]) -> Metric:
    return Metric(name, compute, "scipy", regression=True, of_weights=of_weights, why_undefined=_why_no_correlation)


def _recalling(way: str, depth: int) -> Metric:
    compute, of_weights = recall(way, depth)
    return Metric(f"{way}_{depth}", compute, "numpy", regression=True, of_weights=of_weights)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, "numpy", of_counts=_accuracy_of_counts),
        Metric("f1", _f1, "scikit-learn", binary=True, of_counts=_f1_of_counts, convention=_f1_convention),
        Metric("macro_f1", _macro_f1, "scikit-learn", of_counts=_macro_f1_of_counts),
        Metric("matthews", _matthews, "scikit-learn", of_counts=_matthews_of_counts, convention=_matthews_convention),
        Metric("ece", _calibration_error, "numpy", higher_is_better=False, of_rows=_calibration_errors, of_logits=True),
        *(_recalling(way, depth) for way in (IMAGE_TO_TEXT, TEXT_TO_IMAGE) for depth in DEPTHS),
        _correlating("pearson", _pearson, _pearson_of_weights),
        _correlating("spearman", _spearman, _spearman_of_weights),
    )
}

_AGREEMENT_OF_RANKS = Metric("agreement", agree, "numpy", regression=True, of_weights=agree_weighted)


def agreement_metric(answers: Array, signature: str = "") -> Metric:
    """Return the metric of (student, teacher): equal classes, correlated scores, or of packed ranks ``agree``.

    Args:
        answers: (examples,) class numbers, scores, or packed ranks.
        signature: of the agreement, or its beginning: it tells ranks from scores.
    """
    if are_ranks(signature):
        return _AGREEMENT_OF_RANKS
    return METRICS["pearson" if answers.dtype.kind == "f" else "accuracy"]


GROUPS: Mapping[str, tuple[str, ...]] = {"ppl": ("ppl", "word_ppl"), "rouge": ("rougeL",)}
"""Names of groups of metrics: perplexity by token and by word, ROUGE by the longest common subsequence."""


def expand_groups(words: Sequence[str]) -> tuple[str, ...]:
    """Replace groups by their metrics, each once."""
    return tuple(dict.fromkeys(name for word in words for name in GROUPS.get(word, (word,))))


def score(metric: Metric, predictions: Array, references: Array) -> Score:
    """Compute a metric over a split; an undefined value has its reason."""
    from importlib.metadata import version

    assert len(predictions) == len(references), "every prediction has its reference"
    why = _why_not(metric, predictions, references)
    shipped = METRICS.get(metric.name) is metric
    with nullcontext() if shipped else library_errors(f"metric {metric.name!r} gives no number"):
        value = float("nan") if why else float(metric.compute(predictions, references))
    if not why and metric.why_undefined is not None and not math.isfinite(value):
        why = metric.why_undefined(predictions, references) or "the numbers are too large to compute with"
    made_by = f"{metric.library} {version(metric.library)}" if metric.library in _DISTRIBUTIONS else metric.library
    return Score(
        metric=metric.name,
        value=value,
        unit=metric.unit,
        n=len(references),
        higher_is_better=metric.higher_is_better,
        signature=made_by,
        reason=why,
        note="" if why or metric.convention is None else metric.convention(predictions, references),
    )


def _why_not(metric: Metric, predictions: Array, references: Array) -> str:
    """Reason why a metric cannot be computed at all: no examples, or infinite or NaN numbers."""
    if len(references) == 0:
        return "there is no example"
    for name, values in (("predictions", predictions), ("references", references)):
        bad = int(np.sum(~np.isfinite(values))) if np.asarray(values).dtype.kind == "f" and not metric.of_logits else 0
        if bad:
            return f"{bad:,} of {len(values):,} {name} are infinite or NaN"
    return ""


_DISTRIBUTIONS = ("numpy", "scikit-learn", "scipy")


def metrics_named(names: Sequence[str]) -> tuple[dict[str, Metric], list[str]]:
    """Return all metrics of classes and scores by the names in scores, with a run's own metrics.

    Args:
        names: a task's metrics; a user's as ``package.module:Name`` or ``file.py:Name``.

    Returns:
        The metrics, and for each missing one of the user's the reason.
    """
    found, missing = dict(METRICS), []
    for name in names:
        if ":" in name:
            try:
                metric: object = resolve(name, METRICS, "metric")
            except UsageError as error:
                missing.append(str(error))
                continue
            if isinstance(metric, Metric):
                found[metric.name] = metric
    return found, missing
