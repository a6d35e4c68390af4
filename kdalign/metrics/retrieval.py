"""Retrieval: ranks of an image's text and of a text's image, and recall at k.

A pair's two ranks are kept as one number, so that predictions of pairs are kept, archived and compared as scores are:
the rank of its text among all texts times 2^26, plus the rank of its image among all images, from 0.
"""

from collections.abc import Callable

import numpy as np

from kdalign.metrics.arrays import Array

_AMONG = "ranks among the"
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


def describe_ranks(pairs: int) -> str:
    """Describe how ranks were found, which begins the signature of every score of them."""
    return f"{_AMONG} {pairs:,} pairs of the split, where equal texts, and equal images, answer alike"


def are_ranks(signature: str) -> bool:
    """Return whether a score of this signature is of packed ranks."""
    return signature.startswith(_AMONG)


def both_or_neither(ours: Array, theirs: Array) -> Array:
    """Count the queries of each pair, (pairs,) of 0 to 2, that two models answer right both, or wrong both.

    A pair is two queries: its image among all images' texts, and its text among all texts' images. An answer is right
    if nothing wrong comes before it (rank 0). The mean share is the observed error overlap of Geirhos et al. 2020,
    arXiv:2006.16736.

    Args:
        ours: (pairs,) packed ranks of one model.
        theirs: (pairs,) packed ranks of the other.
    """
    each_way = zip(unpack_ranks(ours), unpack_ranks(theirs), strict=True)
    counts: Array = np.sum([(first == 0) == (second == 0) for first, second in each_way], axis=0)
    return counts


def agree(ours: Array, theirs: Array) -> float:
    """Return the share of queries, in per cent, that two models answer right both, or wrong both."""
    return 50.0 * float(both_or_neither(ours, theirs).mean())


def agree_weighted(weights: Array, ours: Array, theirs: Array) -> Array:
    """Return the same of pairs with weights (resamples, pairs), (resamples,)."""
    shares: Array = 50.0 * (weights @ both_or_neither(ours, theirs)) / weights.sum(axis=1)
    return shares


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
