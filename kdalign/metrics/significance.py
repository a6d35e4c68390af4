r"""Paired significance tests over examples and seeds: is an arm better than the baseline, or is that noise?

Both arms answer the same examples, so the difference is tested example by example. A difference is positive if the arm
is better than the baseline, whatever the metric's direction.

==================  ===================================================  ==============================================
seeds               p                                                    95 % interval
==================  ===================================================  ==============================================
one, accuracy       McNemar's test, exact (McNemar 1947)                 bootstrap over pairs (Koehn 2004)
one, other metrics  approximate randomisation (Noreen 1989)              the same
several             t over seeds and examples (Cochran and Cox 1957)     the same t
one, over tasks     z over examples                                      the same z
==================  ===================================================  ==============================================

Over several arms, p is corrected by Holm's procedure (Holm 1979). Measured error rates: docs/reference/statistics.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeGuard

import numpy as np

from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Metric
from kdalign.metrics.intervals import RESAMPLES
from kdalign.metrics.system_outputs import LabelOutputs, SufficientStats, SystemOutputs, blocks

LEVEL = 0.05
POWER = 0.8


MCNEMAR = "McNemar, exact"
RANDOMISATION = "approximate randomisation"
OVER_SEEDS = "t over seeds and examples"
OVER_TASKS = "z over examples"


class UndefinedDifference(UsageError):
    """The difference is undefined, or has too few examples for an interval."""


@dataclass(frozen=True)
class PairedDifference:
    """Difference of an arm to the baseline in the metric's unit, not yet corrected for other arms.

    Attributes:
        value: mean over seeds; positive if the arm is better, also for perplexities and errors.
        low: lower end of its 95 % interval.
        high: upper end of the interval.
        p: two-sided probability of a difference at least as large if there is none.
        detectable: smallest difference that a test at 5 % would find in 80 % of such data, from the standard error;
            None if the arms' answers never differ, so that their spread is unknown.
        n: number of examples.
        test: name of the test that gave p.
        by_seed: (seeds,) differences.
        covariance: (seeds, seeds) of the differences, by the choice of examples.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float | None
    n: int
    test: str
    by_seed: Array
    covariance: Array


@dataclass(frozen=True)
class TestResult:
    """Verdict on an arm against the baseline.

    Attributes:
        difference: in the metric's unit; positive if the arm is better, whatever the metric's direction.
        low: lower end of its 95 % interval, not corrected for other arms.
        high: upper end of the interval.
        p: two-sided.
        p_holm: p corrected for the number of arms (Holm 1979).
        detectable: smallest difference that such data show with 80 % power at 5 %, from the standard error, before the
            correction; None if the arms' answers never differ.
        n: number of examples.
        seeds: number of pairs of runs.
        test: the test's name.
        word: ``better`` or ``worse`` if ``p_holm`` is below 5 %, else ``no evidence``.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    detectable: float | None
    n: int
    seeds: int
    test: str
    word: str

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


def paired_difference(
    arm: Sequence[SystemOutputs],
    baseline: Sequence[SystemOutputs],
    *,
    higher_is_better: bool = True,
    what: str = "the arms",
) -> PairedDifference:
    """Test the difference between two arms' outputs on the same examples.

    Args:
        arm: the arm's outputs, by seed.
        baseline: the baseline's outputs, by the same seeds.
        higher_is_better: the metric's direction.
        what: name of the comparison in error lines.

    Raises:
        UsageError: the examples differ.
        UndefinedDifference: a value is undefined, or there are too few examples to resample.
    """
    n = _check(arm, baseline, what)
    added = _as_sums([*arm, *baseline])
    pairs = list(zip(added[: len(arm)], added[len(arm) :], strict=True))
    sign = 1.0 if higher_is_better else -1.0
    whole = np.ones((1, n))
    values = sign * np.array([(ours.under(whole) - theirs.under(whole))[0] for ours, theirs in pairs]) + 0.0  # no -0
    if not np.isfinite(values).all():
        raise UndefinedDifference(f"{what}: a value is undefined")
    draws = sign * np.stack(
        [_resampled(ours) - _resampled(theirs) for ours, theirs in pairs], axis=1
    )  # (resamples, seeds)
    draws = draws[np.isfinite(draws).all(axis=1)]
    if len(draws) < RESAMPLES // 2:
        raise UndefinedDifference(f"{what}: {n} examples are too few for an interval of the difference")
    covariance = np.atleast_2d(np.cov(draws, rowvar=False))
    if len(values) > 1:
        return _over_seeds(values, covariance, n, OVER_SEEDS)
    low, high = (float(end) for end in np.percentile(draws[:, 0], [2.5, 97.5]) + 0.0)
    if _is_accuracy(arm[0]) and _is_accuracy(baseline[0]):
        test, p = MCNEMAR, mcnemar(*(one.predictions == one.references for one in (arm[0], baseline[0])))
    else:
        test, p = RANDOMISATION, _randomisation(*pairs[0])
    detectable = _detectable(math.sqrt(covariance[0, 0]), _normal)
    return PairedDifference(float(values[0]), low, high, p, detectable, n, test, values, covariance)


def macro_difference(differences: Sequence[PairedDifference]) -> PairedDifference:
    """Combine tasks' differences over the same seeds into the difference of the means over tasks.

    Tasks are fixed: the claim is about these. Examples of different tasks are drawn independently, so their
    covariances add up; a seed is shared by all tasks, so seeds vary by their mean over tasks.
    """
    count = len(differences)
    by_seed = np.mean([one.by_seed for one in differences], axis=0)
    covariance = np.sum([one.covariance for one in differences], axis=0) / count**2
    test = OVER_SEEDS if len(by_seed) > 1 else OVER_TASKS
    return _over_seeds(by_seed, covariance, sum(one.n for one in differences), test)


def correct_for_arms(differences: Sequence[PairedDifference]) -> tuple[TestResult, ...]:
    """Turn several arms' differences to one baseline into verdicts corrected for the number of arms (Holm 1979)."""
    corrected = holm([one.p for one in differences])
    return tuple(
        TestResult(
            difference=one.value,
            low=one.low,
            high=one.high,
            p=one.p,
            p_holm=p,
            detectable=one.detectable,
            n=one.n,
            seeds=len(one.by_seed),
            test=one.test,
            word="no evidence" if p >= LEVEL or one.value == 0 else "better" if one.value > 0 else "worse",
        )
        for one, p in zip(differences, corrected, strict=True)
    )


def _over_seeds(by_seed: Array, covariance: Array, n: int, test: str) -> PairedDifference:
    r"""Test the mean difference over seeds against the variation by both seeds and examples.

    Seeds and examples are crossed random factors. With S seeds, D_s the difference of seed s and Γ the covariance
    (S, S) of these by the choice of examples, from the bootstrap,

    .. math::
        V = A + C, \quad A = \frac{1}{S (S - 1)} \sum_s (D_s - \bar D)^2, \quad
        C = \max\Bigl(0, \frac{1}{S (S - 1)} \sum_{s \ne t} Γ_{st}\Bigr)

    estimates the variance of the mean: A is the variation from seed to seed (also by example), C the effect of
    examples on all seeds alike. A has few degrees of freedom, so a normal quantile, or Satterthwaite's (1946) if C
    is of A's size, claims too often; the quantile is Cochran's instead (Cochran and Cox 1957, Experimental Designs;
    Cochran 1964, Biometrics 20), the mean of both parts' weighted by their variances:

    .. math:: q(\alpha) = \bigl(A\, t_{S-1}(1 - \alpha/2) + C\, z(1 - \alpha/2)\bigr) / V

    Nor does it claim more than the examples alone allow, with variance :math:`B = \sum_{s,t} Γ_{st} / S^2`: three
    seeds that agree by luck prove nothing. So p is the larger of both tests', the interval the wider one, and no p is
    below 2^(1 - n), the least of a sign test on n pairs.
    """
    seeds, mean = len(by_seed), float(np.mean(by_seed))
    examples_alone = math.sqrt(max(0.0, float(covariance.mean())))
    if seeds == 1:
        of_seeds = common = 0.0
    else:
        of_seeds = float(np.var(by_seed, ddof=1)) / seeds
        common = max(0.0, float(covariance.sum() - np.trace(covariance))) / (seeds * (seeds - 1))
    both = math.sqrt(of_seeds + common)

    def quantile(tail: float) -> float:
        """Cochran's quantile: the value that a two-sided test at ``2 * tail`` must exceed."""
        return (of_seeds * _t(tail, seeds - 1) + common * _normal(tail)) / (of_seeds + common)

    half, p = _normal(LEVEL / 2) * examples_alone, _tail(_normal, mean, examples_alone)
    detectable = _detectable(examples_alone, _normal)
    if both > 0:
        half = max(half, quantile(LEVEL / 2) * both)
        p = max(p, _tail(quantile, mean, both))
        detectable = max(filter(None, (detectable, _detectable(both, quantile))))
    p = 1.0 if mean == 0 else max(p, 2.0 ** (1 - n))
    return PairedDifference(mean, mean - half, mean + half, p, detectable, n, test, by_seed, covariance)


def _normal(tail: float) -> float:
    from scipy.special import ndtri

    return -float(ndtri(tail))


def _t(tail: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, tail))


def _tail(quantile: Callable[[float], float], mean: float, error: float) -> float:
    """The two-sided p of a mean with a standard error: the level at which the quantile is just reached."""
    from scipy.optimize import brentq

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    reached, least = abs(mean) / error, 1e-300
    if reached >= quantile(least / 2):
        return least
    found = brentq(lambda log_p: quantile(math.exp(log_p) / 2) - reached, math.log(least), 0.0, xtol=1e-10)
    return min(1.0, math.exp(float(found)))


def _detectable(error: float, quantile: Callable[[float], float]) -> float | None:
    """The detectable difference, (q(0.975) + q(0.8)) standard errors: 80 % of tests at 5 % find one of this size."""
    return (quantile(LEVEL / 2) + quantile(1 - POWER)) * error if error > 0 else None


def _randomisation(arm: SufficientStats | LabelOutputs, baseline: Any) -> float:
    """Approximate randomisation (Noreen 1989): p of a difference as large when outputs are swapped at random.

    If the arms are equally good, an example's two outputs could as well be swapped. p counts the observed difference
    among the draws, so it is never 0.
    """
    whole = np.ones((1, len(arm.examples)))
    observed = abs(float((arm.under(whole) - baseline.under(whole))[0]))
    drawn = np.abs(arm.swapped(baseline, np.random.default_rng(0)))
    drawn = drawn[np.isfinite(drawn)]
    return float((1 + np.sum(drawn >= observed * (1 - 1e-9))) / (1 + len(drawn)))


def _is_accuracy(one: SystemOutputs) -> TypeGuard[LabelOutputs]:
    return isinstance(one, LabelOutputs) and [metric.name for metric in one.metrics] == ["accuracy"]


def _check(arm: Sequence[SystemOutputs], baseline: Sequence[SystemOutputs], what: str) -> int:
    """Return the number of examples, after checking that all outputs are for the same ones."""
    assert len(arm) == len(baseline) > 0, "both arms have the same seeds"
    sizes = {len(one.examples) for one in (*arm, *baseline)}
    if len(sizes) > 1:
        raise UsageError(f"{what}: answers to {' and '.join(map(str, sorted(sizes)))} examples cannot be paired")
    for ours, theirs in zip(arm, baseline, strict=True):
        if not np.array_equal(ours.examples, theirs.examples):
            raise UsageError(f"{what}: the examples or their order differ, so answers cannot be paired")
    (n,) = sizes
    if n < 2:
        raise UndefinedDifference(f"{what}: {n} examples are too few for an interval of the difference")
    return n


def _as_sums(answers: Sequence[SystemOutputs]) -> list[Any]:
    """Turn classes into rows that add up to confusion counts, if all metrics can be computed from these.

    A row marks one of the pairs (reference, prediction) that occur anywhere.
    """
    classed = [one for one in answers if isinstance(one, LabelOutputs)]
    if len(classed) < len(answers) or any(metric.of_counts is None for one in classed for metric in one.metrics):
        return list(answers)
    if any(part.dtype.kind == "f" for one in classed for part in (one.predictions, one.references)):
        return list(answers)
    classes = int(max(max(one.predictions.max(), one.references.max(), 1) for one in classed)) + 1
    cells = [one.references.astype(int) * classes + one.predictions.astype(int) for one in classed]
    present = np.unique(np.concatenate(cells))
    metrics = classed[0].metrics

    def value(sums: Array) -> Array:
        found, start = [], 0
        for size in blocks(len(sums), classes**2):
            counts = np.zeros((size, classes**2))
            counts[:, present] = sums[start : start + size]
            square, start = counts.reshape(size, classes, classes), start + size
            found.append(np.mean([metric.of_counts(square) for metric in metrics if metric.of_counts], axis=0))
        return np.concatenate(found)

    return [
        SufficientStats((own[:, None] == present).astype(float), value, one.references)
        for own, one in zip(cells, classed, strict=True)
    ]


def _resampled(one: SystemOutputs) -> Array:
    """Values (resamples,) of a system under the resamples that all systems share."""
    if isinstance(one, SufficientStats):
        return np.concatenate([one.under(weights) for weights in _resamples(len(one.examples))])
    answers = [(part.tobytes(), part.dtype.str, part.shape) for part in (one.predictions, one.references)]
    values: Array = np.mean([_metric_resampled(metric, *answers) for metric in one.metrics], axis=0)
    return values


Frozen = tuple[bytes, str, tuple[int, ...]]
"""An array by its bytes, type and shape."""


@lru_cache(maxsize=256)
def _metric_resampled(metric: Metric, predictions: Frozen, references: Frozen) -> Array:
    """Resample a metric, cached: the same values serve the metric, its means, and comparisons with other arms."""
    ours, theirs = (np.frombuffer(raw, kind).reshape(shape) for raw, kind, shape in (predictions, references))
    one = LabelOutputs((metric,), ours, theirs)
    return np.concatenate([one.under(weights) for weights in _resamples(len(theirs))])


def _resamples(n: int) -> Iterator[Array]:
    """Yield blocks of counts (resamples, n) of how often each example is drawn; the same in every call."""
    drawn, start = _drawn(n), 0
    for size in blocks(RESAMPLES, n):
        yield drawn[start : start + size].astype(float)
        start += size


@lru_cache(maxsize=8)
def _drawn(n: int) -> Array:
    generator = np.random.default_rng(0)
    return np.stack([np.bincount(generator.integers(0, n, n), minlength=n) for _ in range(RESAMPLES)]).astype(np.uint8)


def mcnemar(arm: Array, baseline: Array) -> float:
    r"""Compute the two-sided p of McNemar's exact test (McNemar 1947) on which examples (n,) each arm has right.

    Of the b + c examples that only one arm has right, b are the arm's. If the arms are equally good, b is
    binomial: :math:`p = \min(1, 2 P(X \le \min(b, c)))`, X from Binomial(b + c, 1/2).
    """
    from scipy.stats import binomtest

    only_arm, only_baseline = int(np.sum(arm & ~baseline)), int(np.sum(baseline & ~arm))
    if only_arm + only_baseline == 0:
        return 1.0
    return float(binomtest(only_arm, only_arm + only_baseline, 0.5).pvalue)


def holm(values: Sequence[float]) -> tuple[float, ...]:
    r"""Correct p values by Holm's step-down procedure (Holm 1979), in the given order.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1) p_{(j)})

    for the m values from the smallest up: the probability of any false claim among them is at most the level.
    """
    corrected, largest = [1.0] * len(values), 0.0
    for rank, number in enumerate(sorted(range(len(values)), key=lambda number: values[number])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[number]))
        corrected[number] = largest
    return tuple(corrected)
