"""Confidence intervals over examples and seeds: Wilson, percentile bootstrap, Student's t."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from kdalign.metrics.arrays import Array

RESAMPLES = 1000
MOST_CELLS = 1 << 24
"""Limit of cells of confusion tables in memory at once: with many classes, a thousand tables would fill it."""

MOST_ROWS = 1 << 20
"""Limit of rows of resamples in memory at once."""


def example_interval(
    name: str,
    compute: Callable[[Array, Array], float],
    predictions: Array,
    references: Array,
    of_counts: Callable[[Array], Array] | None = None,
    of_rows: Callable[[Array, Array, Array], Array] | None = None,
) -> tuple[float | None, float | None]:
    """Compute the 95 % interval of a metric over examples, in the metric's unit.

    Accuracy has Wilson's interval (Wilson 1927), exact enough at any n; every other metric a percentile bootstrap
    over examples (1,000 resamples, fixed seed), None if there are too few examples or no spread. A metric that
    needs only the confusion counts (``of_counts``) is resampled through them: drawing n examples with replacement
    is drawing their counts from a multinomial distribution. A metric that computes many resamples at once
    (``of_rows``) has the values that ``compute`` would have given.
    """
    if not len(references):
        return None, None
    if name == "accuracy":
        from scipy.stats import binomtest

        hits = int(np.sum(predictions == references))
        interval = binomtest(hits, len(references)).proportion_ci(method="wilson")
        return 100 * float(interval.low), 100 * float(interval.high)
    generator = np.random.default_rng(0)
    n = len(references)
    if n < 2 or (predictions.ndim == 1 and not (np.isfinite(predictions).all() and np.isfinite(references).all())):
        return None, None
    if of_counts is not None:
        classes = int(max(predictions.max(), references.max(), 1)) + 1
        cells = np.bincount(references * classes + predictions, minlength=classes**2)
        at_once = max(1, min(RESAMPLES, MOST_CELLS // classes**2))
        parts = []
        for begun in range(0, RESAMPLES, at_once):
            size = min(at_once, RESAMPLES - begun)
            counts = generator.multinomial(n, cells / n, size)
            parts.append(of_counts(counts.reshape(size, classes, classes)))
        values = np.concatenate(parts)
    elif of_rows is not None:
        at_once = max(1, min(RESAMPLES, MOST_ROWS // n))
        sizes = [min(at_once, RESAMPLES - begun) for begun in range(0, RESAMPLES, at_once)]
        blocks = (np.stack([generator.integers(0, n, n) for _ in range(size)]) for size in sizes)
        values = np.concatenate([of_rows(rows, predictions, references) for rows in blocks])
    else:
        draws = (generator.integers(0, n, n) for _ in range(RESAMPLES))
        values = np.array([compute(predictions[rows], references[rows]) for rows in draws])
    return _middle(values)


def ratio_interval(sums: Array, units: Array) -> tuple[float | None, float | None]:
    """Compute the 95 % interval of sum(sums) / sum(units) over rows by a bootstrap of 1,000 fixed resamples."""
    n = len(sums)
    if n < 2 or not np.isfinite(sums).all():
        return None, None
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    low, high = np.percentile(drawn @ sums / np.maximum(drawn @ units, 1), [2.5, 97.5])
    return float(low), float(high)


def sums_interval(rows: Array, value: Callable[[Array], float]) -> tuple[float | None, float | None]:
    """Compute the 95 % interval of a value of summed rows (n, counts) by a bootstrap of 1,000 fixed resamples."""
    n = len(rows)
    if n < 2:
        return None, None
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return _middle(np.array([value(sums) for sums in drawn @ rows]))


def _middle(values: Array) -> tuple[float | None, float | None]:
    """The middle 95 % of the defined values; None if half of the resamples or more are undefined."""
    finite = values[np.isfinite(values)]
    if len(finite) < RESAMPLES // 2:
        return None, None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Compute the mean over seeds and half the width of its 95 % interval (Student's t); None for a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit  # the same as scipy.stats.t.ppf, which takes a second to load

    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, float(stdtrit(len(values) - 1, 0.975)) * spread
