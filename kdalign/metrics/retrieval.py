"""Retrieval: ranks of an image's text and of a text's image, and recall at k.

A pair's two ranks are kept as one number, so that predictions of pairs are kept, archived and compared as scores are:
the rank of its text among all texts times 2^26, plus the rank of its image among all images, from 0.
"""

from collections.abc import Callable

import numpy as np

from kdalign.metrics.arrays import Array

_BITS = 26
MOST_PAIRS = 2**_BITS
"""Limit of the pairs of a split: both ranks must be whole in a float64."""
DEPTHS = (1, 5, 10)
"""Numbers of retrieved items among which the right one is looked for."""
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "i2t_recall", "t2i_recall"
RECALLS = tuple(f"{way}_{depth}" for way in (IMAGE_TO_TEXT, TEXT_TO_IMAGE) for depth in DEPTHS)
"""Names of the metrics: recall at 1, 5 and 10 of texts given an image, and of images given a text."""


def pack_ranks(of_texts: Array, of_images: Array) -> Array:
    """Pack both ranks of each pair, (pairs,), into one number."""
    packed: Array = of_texts.astype(np.float64) * MOST_PAIRS + of_images
    return packed


def unpack_ranks(packed: Array) -> tuple[Array, Array]:
    """Return the ranks of texts and of images, (pairs,)."""
    return np.floor_divide(packed, MOST_PAIRS), np.mod(packed, MOST_PAIRS)


def ranks(cosines: Array, right: Array) -> Array:
    """Return the rank of the best right column of each row, from 0; a wrong column of equal cosine comes before it.

    Args:
        cosines: (rows, columns).
        right: (rows, columns), true where a column answers a row.
    """
    best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
    found: Array = ((cosines >= best) & ~right).sum(axis=1)
    return found


def recall(way: str, depth: int) -> tuple[Callable[[Array, Array], float], Callable[[Array, Array, Array], Array]]:
    """Return recall at a depth, in per cent, of packed ranks, and the same of pairs with weights (resamples, pairs)."""

    def hits(packed: Array) -> Array:
        found: Array = unpack_ranks(packed)[way == TEXT_TO_IMAGE] < depth
        return found

    def compute(packed: Array, _references: Array) -> float:
        return 100.0 * float(hits(packed).mean())

    def compute_weighted(weights: Array, packed: Array, _references: Array) -> Array:
        found: Array = 100.0 * (weights @ hits(packed)) / weights.sum(axis=1)
        return found

    return compute, compute_weighted
