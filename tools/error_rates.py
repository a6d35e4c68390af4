"""Simulate two known arms, and measure false positives and power of the verdicts.

    python tools/error_rates.py     # the table in docs/reference/statistics.md, a few minutes

An example is answered correctly where a normal variable exceeds a threshold. The variable is a sum: a part shared by
both arms (the example's difficulty), a part of the arm in all its seeds, and a part of each run; a whole run may be
better or worse by luck (``luck``, the standard deviation of its accuracy over seeds, in points).
"""

import sys
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm, t

from kdalign.metrics.classification import METRICS
from kdalign.metrics.significance import correct_for_arms, macro_difference, paired_difference
from kdalign.metrics.system_outputs import LabelOutputs

NULLS = 2000


@dataclass(frozen=True)
class Setting:
    """Two arms on one task.

    Attributes:
        n: examples.
        right: expected share of correct answers.
        apart: share of examples on which two runs of different arms differ.
        seeds: runs of each arm.
        luck: standard deviation of a run's expected accuracy over seeds, in points.
        equal_models: both arms' runs of a seed have the same luck, so that not only the recipes are equally good.
        metric: name of the tested metric.
        ones: share of class 1.
        tasks: number of equal tasks, for the macro mean.
    """

    n: int
    right: float
    apart: float
    seeds: int
    luck: float = 0.0
    equal_models: bool = False
    metric: str = "accuracy"
    ones: float = 0.5
    tasks: int = 1


@lru_cache
def correlation(right: float, apart: float) -> float:
    """Return the correlation of two runs' normal variables at which a given share of answers differs."""
    cut = -norm.ppf(right)

    def off(rho):
        both = multivariate_normal.cdf([-cut, -cut], cov=[[1, rho], [rho, 1]])
        return 2 * (right - both) - apart

    return brentq(off, 0.0, 0.9999)


def drawn(setting, generator, better=0.0):
    """Draw both arms' answers by seed; the first arm is better by the given points."""
    shared = correlation(setting.right, setting.apart)
    own = (1 - shared) / 2
    cut, slope = -norm.ppf(setting.right), norm.pdf(norm.ppf(setting.right))
    references = (generator.random(setting.n) < setting.ones).astype(int)
    difficulty = np.sqrt(shared) * generator.standard_normal(setting.n)
    luck = setting.luck / 100 / slope * generator.standard_normal((2, setting.seeds))
    if setting.equal_models:
        luck[1] = luck[0]
    arms = []
    for arm in (0, 1):
        kept = difficulty + np.sqrt(own) * generator.standard_normal(setting.n)
        answers = []
        for seed in range(setting.seeds):
            number = kept + np.sqrt(1 - shared - own) * generator.standard_normal(setting.n)
            good = number + luck[arm, seed] + (arm == 0) * better / 100 / slope > cut
            answers.append(
                LabelOutputs((METRICS[setting.metric],), np.where(good, references, 1 - references), references)
            )
        arms.append(answers)
    return arms


def said(setting, generator, better=0.0):
    """Return a verdict's word."""
    found = [paired_difference(*drawn(setting, generator, better)) for _ in range(setting.tasks)]
    (verdict,) = correct_for_arms([found[0] if setting.tasks == 1 else macro_difference(found)])
    return verdict.word


def rate(setting, times=NULLS, better=0.0, seed=0):
    """Return the rate of verdicts in per cent: false positives where ``better`` is 0, otherwise power."""
    generator = np.random.default_rng(seed)
    words = [said(setting, generator, better) for _ in range(times)]
    return 100 * np.mean([word == "better" if better else word != "no evidence" for word in words])


def trade(seeds, generator):
    """Draw two arms of equal F1, one bold and one shy, whose answers are not exchangeable."""
    references = (generator.random(408) < 0.68).astype(int)
    # F1 = 2 q t / (q t + (1 - q) f + q) for true and false positive rates t, f: both 0.8
    arms = []
    for true in (0.95, 0.75):
        false = (2 * 0.68 * true / 0.8 - 0.68 * true - 0.68) / 0.32
        chance = np.where(references == 1, true, false)
        arms.append(
            [
                LabelOutputs((METRICS["f1"],), (generator.random(408) < chance).astype(int), references)
                for _ in range(seeds)
            ]
        )
    return arms


def trade_rate(seeds, times=NULLS):
    """Return the rate of verdicts on arms of equal F1, in per cent."""
    generator = np.random.default_rng(0)
    words = [correct_for_arms([paired_difference(*trade(seeds, generator))])[0].word for _ in range(times)]
    return 100 * np.mean([word != "no evidence" for word in words])


def liberal(seeds, times=100_000):
    """Return the worst false-positive rates of two quantiles for a variance A + C: (Satterthwaite's, Cochran's).

    Of normal numbers: the mean has variance A + C, A is estimated from the seeds, C is known.
    """
    generator, worst = np.random.default_rng(0), [0.0, 0.0]
    for known in (0.0, 0.3, 0.5, 1.0, 3.0):
        for true in (1.0, 2.0, 4.0, 11.0, 31.0):
            mean = np.sqrt(true + known) * generator.standard_normal(times)
            of_seeds = true * generator.chisquare(seeds - 1, times) / (seeds - 1)
            both = of_seeds + known
            freedom = both**2 * (seeds - 1) / of_seeds**2
            quantiles = t.isf(0.025, freedom), (of_seeds * t.isf(0.025, seeds - 1) + known * norm.isf(0.025)) / both
            wrong = [100 * np.mean(np.abs(mean) > quantile * np.sqrt(both)) for quantile in quantiles]
            worst = np.maximum(worst, wrong)
    return worst


SMALL, LARGE = Setting(277, 0.57, 0.25, 1), Setting(872, 0.90, 0.12, 1)
SETTINGS = [
    replace(base, apart=apart, seeds=seeds, luck=luck, equal_models=seeds == 1)
    for base, aparts, lucks in ((SMALL, (0.05, 0.25), (0.0, 2.0)), (LARGE, (0.05, 0.12), (0.0, 0.5)))
    for apart in aparts
    for seeds in (1, 3, 5)
    for luck in lucks
]
TWO = [
    replace(base, seeds=2, apart=apart, luck=luck)
    for base, apart, lucks in ((SMALL, 0.25, (0.0, 2.0)), (LARGE, 0.12, (0.0, 0.5)))
    for luck in lucks
]
OTHERS = [
    replace(
        SMALL, metric=metric, n=n, right=right, apart=0.15, ones=ones, seeds=seeds, luck=1.0, equal_models=seeds == 1
    )
    for metric, n, right, ones in (("f1", 408, 0.85, 0.68), ("matthews", 1043, 0.82, 0.69))
    for seeds in (1, 3, 5)
]
MACRO = [replace(SMALL, tasks=5, seeds=seeds, luck=1.0, equal_models=seeds == 1) for seeds in (1, 3, 5)]
DIFFERENCES = {277: (4.0, 8.0), 872: (1.5, 3.0), 408: (3.0, 6.0), 1043: (2.0, 4.0)}


def line(setting, times=NULLS):
    """Format a row of the table: a setting, its false positives, and the power at two differences of accuracy."""
    power = [f"{rate(setting, times // 4, better, seed=1):.0f} % at {better:g}" for better in DIFFERENCES[setting.n]]
    what = setting.metric if setting.tasks == 1 else f"mean of {setting.tasks} accuracies"
    false = rate(setting, times)
    row = (
        what,
        setting.n,
        f"{100 * setting.right:g} %",
        f"{100 * setting.apart:g} %",
        setting.seeds,
        f"{setting.luck:g}",
    )
    return false, f"| {' | '.join(map(str, row))} | {false:.1f} % | {', '.join(power)} |"


def main():
    for setting in SETTINGS + TWO + OTHERS + MACRO:
        print(line(setting)[1], flush=True)
    for seeds in (1, 3, 5):
        print(f"f1 of a bold and a shy arm, {seeds} seeds: {trade_rate(seeds):.1f} %", flush=True)
    for setting in (replace(SMALL, luck=2.0), replace(LARGE, luck=0.5)):
        print(f"one seed, equal recipes, n = {setting.n}, luck {setting.luck}: {rate(setting):.1f} %", flush=True)
    for seeds in (2, 3, 5):
        print("{} seeds, Satterthwaite's and Cochran's quantile: {:.1f} % {:.1f} %".format(seeds, *liberal(seeds)))


if __name__ == "__main__":
    sys.exit(main())
