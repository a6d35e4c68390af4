"""Chance levels: labels in random order, and tokens predicted by their frequencies alone."""

import numpy as np

from kdalign.metrics.arrays import Array

DRAWS = 1_999
"""Random orders of a permutation test."""
_LEAST_LOG = -50.0
"""Logarithm that stands for that of a probability of 0."""


def shuffled_fit(scores: Array, labels: Array) -> tuple[float, float]:
    """Test whether answers fit their labels better than labels in random order: a permutation test.

    The statistic is the log-likelihood of the labels; of scores it is the covariance. Both are blind to how often a
    class occurs and to how often a model answers it.

    Args:
        scores: (rows, classes) log-probabilities, or (rows, 1) predicted scores.
        labels: (rows,) class numbers, or scores.

    Returns:
        The probability of a fit at least as good if answers know nothing of the labels, and of one at least as bad.
    """
    generator, n = np.random.default_rng(0), len(labels)
    orders = generator.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    if scores.shape[1] == 1:
        centred = scores[:, 0].astype(np.float64) - scores[:, 0].mean(dtype=np.float64)
        own, drawn = float(centred @ labels), labels[orders] @ centred
    else:
        likely = np.maximum(scores.astype(np.float64), _LEAST_LOG)
        own, drawn = float(likely[np.arange(n), labels].sum()), likely[np.arange(n), labels[orders]].sum(axis=1)
    near = 1e-9 * (1 + abs(own))  # sums in another order differ in their last digits
    better, worse = int((drawn >= own - near).sum()), int((drawn <= own + near).sum())
    return (1 + better) / (1 + DRAWS), (1 + worse) / (1 + DRAWS)


def log_softmax(logits: Array) -> Array:
    """Compute log-probabilities (rows, classes) from logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    probabilities: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return probabilities


def frequency_nats(counts: Array, entries: int) -> float:
    r"""Compute the nats a token of a model that knows nothing but the frequencies of tokens, each left out in turn.

    A token is predicted from the other n - 1, among which t are different ones, by Witten and Bell's (1991) estimate,
    with c its number among them:

    .. math::
        p = \frac{c}{n - 1 + t} \; (c > 0), \qquad p = \frac{t}{(n - 1 + t)(V - t)} \; (c = 0)

    Args:
        counts: (distinct tokens,) how often each occurs; two tokens at least in all.
        entries: size V of the vocabulary.
    """
    seen, once = counts[counts > 1].astype(np.float64), int((counts == 1).sum())
    n, distinct = int(counts.sum()), int((counts > 0).sum())
    total = float(-(seen * np.log((seen - 1) / (n - 1 + distinct))).sum())
    if once:  # the token is then a new one among the others
        others = distinct - 1
        total -= once * float(np.log(others / ((n - 1 + others) * (entries - others))))
    return total / n
