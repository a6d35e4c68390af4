"""A system's outputs on the examples of a split, to be resampled and compared in pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Metric

SWAPS = 9_999
"""Draws of the randomisation test for values of sums; a tenth of it for other values."""


AT_ONCE = 2**23
"""Limit of numbers in a block of weights (64 MB)."""


@dataclass(frozen=True)
class SufficientStats:
    """A system's outputs as rows that add up, for corpus metrics and perplexities.

    Attributes:
        rows: (examples, counts).
        value: function of sums (resamples, counts) to values (resamples,), NaN if undefined.
        examples: (examples,) identity of each, such as its reference; equal in both arms.
    """

    rows: Array
    value: Callable[[Array], Array]
    examples: Array

    def under(self, weights: Array) -> Array:
        """Compute values (resamples,) of examples that count ``weights`` (resamples, examples) times."""
        return self.value(weights @ self.rows)

    def swapped(self, other: Self, generator: np.random.Generator) -> Array:
        """Compute differences to another system after each example's two outputs were swapped with probability 1/2.

        Examples that move the sums alike are drawn together: the number of swapped ones is binomial.
        """
        moves, alike = np.unique(other.rows - self.rows, axis=0, return_counts=True)
        ours, theirs = self.rows.sum(axis=0), other.rows.sum(axis=0)
        found = []
        for size in blocks(SWAPS, len(alike)):
            moved = generator.binomial(alike, 0.5, (size, len(alike))) @ moves
            found.append(self.value(ours + moved) - self.value(theirs - moved))
        return np.concatenate(found)


@dataclass(frozen=True)
class LabelOutputs:
    """A system's classes or scores and their references.

    Attributes:
        metrics: usually one; the value is their mean (a task's one number).
        predictions: (examples,) class numbers or scores, or logits (examples, classes) for metrics that take them.
        references: (examples,).
    """

    metrics: tuple[Metric, ...]
    predictions: Array
    references: Array

    @property
    def examples(self) -> Array:
        """Identity of each example: its reference."""
        return self.references

    def under(self, weights: Array) -> Array:
        """Compute values (resamples,) of examples that count ``weights`` (resamples, examples) times."""
        values: Array = np.mean([self._one(metric, weights) for metric in self.metrics], axis=0)
        return values

    def _one(self, metric: Metric, weights: Array) -> Array:
        if metric.of_weights is not None:
            return metric.of_weights(weights, self.predictions, self.references)
        times, numbers = weights.astype(int), np.arange(len(self.references))
        drawn = (np.repeat(numbers, row) for row in times)
        return np.array([metric.compute(self.predictions[rows], self.references[rows]) for rows in drawn])

    def swapped(self, other: Self, generator: np.random.Generator) -> Array:
        """Compute differences to another system after each example's two outputs were swapped with probability 1/2."""
        both = replace(
            self,
            predictions=np.concatenate([self.predictions, other.predictions]),
            references=np.concatenate([self.references, other.references]),
        )
        found = []
        for size in blocks(SWAPS // 10, len(both.references)):
            taken = generator.integers(0, 2, (size, len(self.references))).astype(float)
            found.append(both.under(np.hstack([1 - taken, taken])) - both.under(np.hstack([taken, 1 - taken])))
        return np.concatenate(found)


SystemOutputs = SufficientStats | LabelOutputs


def blocks(draws: int, width: int) -> Iterator[int]:
    """Yield sizes of blocks of draws, each draw of ``width`` numbers, that fit in ``AT_ONCE``."""
    most = max(1, AT_ONCE // max(width, 1))
    for start in range(0, draws, most):
        yield min(most, draws - start)
