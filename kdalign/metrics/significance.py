r"""Is one arm better than another, or is that noise? Paired tests over examples and seeds.

Both arms answer the same examples, so what is tested is the difference, example by example. A difference is positive
where the arm is better than the baseline, whatever the metric's direction.

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
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Self, TypeGuard

import numpy as np

from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Metric
from kdalign.metrics.intervals import RESAMPLES

LEVEL = 0.05
POWER = 0.8
SWAPS = 9_999
"""Draws of the randomisation test, where values are of sums; a tenth of them elsewhere."""

AT_ONCE = 2**23
"""Numbers of a block of weights (64 MB)."""

MCNEMAR = "McNemar, exact"
RANDOMISATION = "approximate randomisation"
OVER_SEEDS = "t over seeds and examples"
OVER_TASKS = "z over examples"


class UndefinedDifference(UsageError):
    """The difference has no value, or too few examples to say how sure it is."""


@dataclass(frozen=True)
class SufficientStats:
    """A model's answers as rows that add up, for corpus metrics and perplexities.

    Attributes:
        rows: (examples, counts).
        value: of sums (resamples, counts) to values (resamples,), NaN where undefined.
        examples: (examples,) what tells them apart, such as the references; equal in both arms.
    """

    rows: Array
    value: Callable[[Array], Array]
    examples: Array

    def under(self, weights: Array) -> Array:
        """The values (resamples,) of examples that count ``weights`` (resamples, examples) times."""
        return self.value(weights @ self.rows)

    def swapped(self, other: Self, generator: np.random.Generator) -> Array:
        """Differences to another model after each example's two answers have changed places by a coin.

        Examples whose answers move the sums alike are drawn together: how many of them change is binomial.
        """
        moves, alike = np.unique(other.rows - self.rows, axis=0, return_counts=True)
        ours, theirs = self.rows.sum(axis=0), other.rows.sum(axis=0)
        found = []
        for size in _blocks(SWAPS, len(alike)):
            moved = generator.binomial(alike, 0.5, (size, len(alike))) @ moves
            found.append(self.value(ours + moved) - self.value(theirs - moved))
        return np.concatenate(found)


def sums_one_by_one(value: Callable[[Array], float]) -> Callable[[Array], Array]:
    """A function of one row of sums as a function of many."""
    return lambda sums: np.array([value(row) for row in sums])


@dataclass(frozen=True)
class LabelOutputs:
    """A model's answers and their references, for metrics of classes and scores.

    Attributes:
        metrics: the value is their mean (a task's one number); usually one.
        predictions: (examples,) class numbers or scores, or logits (examples, classes) where the metrics take them.
        references: (examples,).
    """

    metrics: tuple[Metric, ...]
    predictions: Array
    references: Array

    @property
    def examples(self) -> Array:
        """What tells them apart: their references."""
        return self.references

    def under(self, weights: Array) -> Array:
        """The values (resamples,) of examples that count ``weights`` (resamples, examples) times."""
        values: Array = np.mean([self._one(metric, weights) for metric in self.metrics], axis=0)
        return values

    def _one(self, metric: Metric, weights: Array) -> Array:
        if metric.of_weights is not None:
            return metric.of_weights(weights, self.predictions, self.references)
        times, numbers = weights.astype(int), np.arange(len(self.references))
        drawn = (np.repeat(numbers, row) for row in times)
        return np.array([metric.compute(self.predictions[rows], self.references[rows]) for rows in drawn])

    def swapped(self, other: Self, generator: np.random.Generator) -> Array:
        """Differences to another model after each example's two answers have changed places by a coin."""
        both = replace(
            self,
            predictions=np.concatenate([self.predictions, other.predictions]),
            references=np.concatenate([self.references, other.references]),
        )
        found = []
        for size in _blocks(SWAPS // 10, len(both.references)):
            taken = generator.integers(0, 2, (size, len(self.references))).astype(float)
            found.append(both.under(np.hstack([1 - taken, taken])) - both.under(np.hstack([taken, 1 - taken])))
        return np.concatenate(found)


SystemOutputs = SufficientStats | LabelOutputs


@dataclass(frozen=True)
class PairedDifference:
    """How much better an arm is than the baseline, in the metric's unit, before other arms are looked at.

    Attributes:
        value: the mean over seeds; positive where the arm is better, also for perplexities and errors.
        low: lower end of its 95 % interval.
        high: upper end.
        p: of a difference at least as large where there is none, two-sided.
        detectable: the smallest difference that a test at 5 % would find in 80 % of such data, from the standard
            error; None where the arms' answers differ nowhere, so that nothing says how far they might.
        n: examples.
        test: what made p.
        by_seed: (seeds,) the differences.
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
    """Whether an arm is better than the baseline.

    Attributes:
        difference: in the metric's unit; positive where the arm is better, whatever the metric's direction.
        low: lower end of its 95 % interval, not corrected for other arms.
        high: upper end.
        p: two-sided.
        p_holm: corrected for the number of arms (Holm 1979).
        detectable: the smallest difference that such data show with 80 % power at 5 %, from the standard error,
            before the correction; None where the arms' answers differ nowhere.
        n: examples.
        seeds: pairs of runs.
        test: its name.
        word: ``better`` or ``worse`` where ``p_holm`` is below 5 %, else ``no evidence``.
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
        """A plain dictionary."""
        return asdict(self)


def paired_difference(
    arm: Sequence[SystemOutputs],
    baseline: Sequence[SystemOutputs],
    *,
    higher_is_better: bool = True,
    what: str = "the arms",
) -> PairedDifference:
    """Compare two arms' answers to the same examples.

    Args:
        arm: its answers, by seed.
        baseline: its answers, by the same seeds.
        higher_is_better: the metric's direction.
        what: is compared, for error lines.

    Raises:
        UsageError: they answered different examples.
        Undefined: a value is undefined, or there are too few examples to resample.
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
        raise UndefinedDifference(f"{what}: {n} examples are too few to say how sure the difference is")
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
    """The difference of two arms' means over tasks, from the tasks' differences over the same seeds.

    Tasks are fixed: the claim is about these. Examples of different tasks are drawn independently, so that their
    covariances add up; a seed is shared by all tasks, so that seeds vary as wholes, by each one's mean over tasks.
    """
    count = len(differences)
    by_seed = np.mean([one.by_seed for one in differences], axis=0)
    covariance = np.sum([one.covariance for one in differences], axis=0) / count**2
    test = OVER_SEEDS if len(by_seed) > 1 else OVER_TASKS
    return _over_seeds(by_seed, covariance, sum(one.n for one in differences), test)


def correct_for_arms(differences: Sequence[PairedDifference]) -> tuple[TestResult, ...]:
    """The verdicts on several arms against one baseline, corrected for their number."""
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
    r"""The mean difference over seeds, with what both the choice of seeds and that of examples may do to it.

    Seeds and examples are crossed random factors. With S seeds, D_s the difference of seed s and Γ the covariance
    (S, S) of these by the choice of examples, from the bootstrap,

    .. math::
        V = A + C, \quad A = \frac{1}{S (S - 1)} \sum_s (D_s - \bar D)^2, \quad
        C = \max\Bigl(0, \frac{1}{S (S - 1)} \sum_{s \ne t} Γ_{st}\Bigr)

    estimates the variance of the mean: A holds what differs from seed to seed (also by example), C what examples do
    to all seeds alike. A has few degrees of freedom, so that a normal quantile, or Satterthwaite's (1946) where C
    is of its size, claims too often; the quantile is Cochran's instead (Cochran and Cox 1957, Experimental Designs;
    Cochran 1964, Biometrics 20), the mean of both parts' weighted by their variances:

    .. math:: q(\alpha) = \bigl(A\, t_{S-1}(1 - \alpha/2) + C\, z(1 - \alpha/2)\bigr) / V

    Nor is it ever surer than the examples alone allow, whose variance :math:`B = \sum_{s,t} Γ_{st} / S^2` is a part
    of the whole: three seeds that agree by luck prove nothing. So p is the larger of those of both tests, the
    interval the wider one, and no p is below 2^(1 - n), the least that n pairs can have in a sign test.
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
        """Cochran's: the value that a two-sided test at ``2 * tail`` must exceed."""
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
    """The two-sided p of a mean in units of its standard error: where the quantile is just reached."""
    from scipy.optimize import brentq

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    reached, least = abs(mean) / error, 1e-300
    if reached >= quantile(least / 2):
        return least
    found = brentq(lambda log_p: quantile(math.exp(log_p) / 2) - reached, math.log(least), 0.0, xtol=1e-10)
    return min(1.0, math.exp(float(found)))


def _detectable(error: float, quantile: Callable[[float], float]) -> float | None:
    """(q(0.975) + q(0.8)) standard errors: beyond it, 80 % of tests at 5 % find the difference."""
    return (quantile(LEVEL / 2) + quantile(1 - POWER)) * error if error > 0 else None


def _randomisation(arm: SufficientStats | LabelOutputs, baseline: Any) -> float:
    """Approximate randomisation (Noreen 1989): how often a difference as large comes when answers change places.

    Where both arms are one, an example's two answers could as well be the other way round. p counts the observed
    difference among the draws, so that it is never 0.
    """
    whole = np.ones((1, len(arm.examples)))
    observed = abs(float((arm.under(whole) - baseline.under(whole))[0]))
    drawn = np.abs(arm.swapped(baseline, np.random.default_rng(0)))
    drawn = drawn[np.isfinite(drawn)]
    return float((1 + np.sum(drawn >= observed * (1 - 1e-9))) / (1 + len(drawn)))


def _is_accuracy(one: SystemOutputs) -> TypeGuard[LabelOutputs]:
    return isinstance(one, LabelOutputs) and [metric.name for metric in one.metrics] == ["accuracy"]


def _check(arm: Sequence[SystemOutputs], baseline: Sequence[SystemOutputs], what: str) -> int:
    """The number of examples, once all answers are known to be to the same ones."""
    assert len(arm) == len(baseline) > 0, "both arms have the same seeds"
    sizes = {len(one.examples) for one in (*arm, *baseline)}
    if len(sizes) > 1:
        raise UsageError(f"{what}: answers to {' and '.join(map(str, sorted(sizes)))} examples cannot be paired")
    for ours, theirs in zip(arm, baseline, strict=True):
        if not np.array_equal(ours.examples, theirs.examples):
            raise UsageError(f"{what}: the examples or their order differ, so that answers cannot be paired")
    (n,) = sizes
    if n < 2:
        raise UndefinedDifference(f"{what}: {n} examples are too few to say how sure the difference is")
    return n


def _as_sums(answers: Sequence[SystemOutputs]) -> list[Any]:
    """Answers of classes as rows that add up to confusion counts, where all metrics are of these.

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
        for size in _blocks(len(sums), classes**2):
            counts = np.zeros((size, classes**2))
            counts[:, present] = sums[start : start + size]
            square, start = counts.reshape(size, classes, classes), start + size
            found.append(np.mean([metric.of_counts(square) for metric in metrics if metric.of_counts], axis=0))
        return np.concatenate(found)

    return [
        SufficientStats((own[:, None] == present).astype(float), value, one.references)
        for own, one in zip(cells, classed, strict=True)
    ]


def _blocks(draws: int, width: int) -> Iterator[int]:
    """How many draws of so many numbers are made at once."""
    most = max(1, AT_ONCE // max(width, 1))
    for start in range(0, draws, most):
        yield min(most, draws - start)


def _resampled(one: SystemOutputs) -> Array:
    """The values (resamples,) of a model under the draws that all share."""
    if isinstance(one, SufficientStats):
        return np.concatenate([one.under(weights) for weights in _resamples(len(one.examples))])
    answers = [(part.tobytes(), part.dtype.str, part.shape) for part in (one.predictions, one.references)]
    values: Array = np.mean([_metric_resampled(metric, *answers) for metric in one.metrics], axis=0)
    return values


Frozen = tuple[bytes, str, tuple[int, ...]]
"""An array by its bytes, type and shape."""


@lru_cache(maxsize=256)
def _metric_resampled(metric: Metric, predictions: Frozen, references: Frozen) -> Array:
    """Kept, since a model answers several questions: a metric's, the mean's, the macro's, and those of other arms."""
    ours, theirs = (np.frombuffer(raw, kind).reshape(shape) for raw, kind, shape in (predictions, references))
    one = LabelOutputs((metric,), ours, theirs)
    return np.concatenate([one.under(weights) for weights in _resamples(len(theirs))])


def _resamples(n: int) -> Iterator[Array]:
    """How often each of n examples is drawn, (resamples, n), block by block; the same whoever asks."""
    drawn, start = _drawn(n), 0
    for size in _blocks(RESAMPLES, n):
        yield drawn[start : start + size].astype(float)
        start += size


@lru_cache(maxsize=8)
def _drawn(n: int) -> Array:
    generator = np.random.default_rng(0)
    return np.stack([np.bincount(generator.integers(0, n, n), minlength=n) for _ in range(RESAMPLES)]).astype(np.uint8)


def mcnemar(arm: Array, baseline: Array) -> float:
    r"""McNemar's exact test (McNemar 1947) of which examples (n,) each arm has right: two-sided p.

    Of the b + c examples that only one arm has right, b are the arm's. Where the arms are equally good, b is
    binomial: :math:`p = \min(1, 2 P(X \le \min(b, c)))`, X from Binomial(b + c, 1/2).
    """
    from scipy.stats import binomtest

    only_arm, only_baseline = int(np.sum(arm & ~baseline)), int(np.sum(baseline & ~arm))
    if only_arm + only_baseline == 0:
        return 1.0
    return float(binomtest(only_arm, only_arm + only_baseline, 0.5).pvalue)


def holm(values: Sequence[float]) -> tuple[float, ...]:
    r"""Holm's step-down correction (Holm 1979), in the given order.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1) p_{(j)})

    for the m values from the smallest up: the chance of any false claim among them is at most the level.
    """
    corrected, largest = [1.0] * len(values), 0.0
    for rank, number in enumerate(sorted(range(len(values)), key=lambda number: values[number])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[number]))
        corrected[number] = largest
    return tuple(corrected)
