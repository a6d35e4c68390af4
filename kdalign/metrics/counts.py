"""Counts of a corpus that add up over examples, from which a text metric's value is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdalign.metrics.arrays import Array

References = Sequence[Sequence[str]]
"""One or more references for each example."""


@dataclass(frozen=True)
class Counts:
    """Counts of a text metric over a corpus.

    Attributes:
        rows: (examples, counts); they add up over examples.
        value: function of the summed rows to the metric's value in its unit; NaN if it is undefined.
        signature: library, version and settings that counted.
        resampled: false if resampling examples says nothing about the value's spread.
        undefined: reason for a NaN, as a clause.
    """

    rows: Array
    value: Callable[[Array], float]
    signature: str
    resampled: bool = True
    undefined: str = ""


def mean_counts(each: Sequence[float], signature: str) -> Counts:
    """Count examples' own values, for their mean."""
    rows = np.column_stack([np.asarray(each, dtype=float), np.ones(len(each))])
    return Counts(rows, ratio, signature)


def ratio(sums: Array) -> float:
    """Return the first sum over the second; NaN for a second of 0."""
    return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")


def per_cent(sums: Array) -> float:
    """Return the same in per cent."""
    return 100.0 * ratio(sums)


def map_texts(
    change: Callable[[str], str], predictions: Sequence[str], references: References
) -> tuple[list[str], list[list[str]]]:
    """Apply a change to all texts."""
    return [change(text) for text in predictions], [[change(text) for text in known] for known in references]
