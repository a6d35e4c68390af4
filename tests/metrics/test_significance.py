"""Paired tests: hand-worked p, outside references, and what must hold whatever the numbers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from error_rates import MACRO, OTHERS, SETTINGS, SMALL, TWO, rate, trade_rate
from kdalign.errors import UsageError
from kdalign.metrics.classification import METRICS
from kdalign.metrics.significance import (
    MCNEMAR,
    OVER_SEEDS,
    RANDOMISATION,
    PairedDifference,
    UndefinedDifference,
    _drawn,
    _metric_resampled,
    _over_seeds,
    correct_for_arms,
    holm,
    macro_difference,
    mcnemar,
    paired_difference,
)
from kdalign.metrics.system_outputs import LabelOutputs, SufficientStats
from support.covering import first_only


def answers(metric, predictions, references):
    return LabelOutputs((METRICS[metric],), np.asarray(predictions), np.asarray(references))


def classes(metric, n=200, seed=0, right=(0.85, 0.75), ones=0.5):
    """Two arms' classes, right that often, on the same references."""
    generator = np.random.default_rng(seed)
    references = (generator.random(n) < ones).astype(int)
    return [
        answers(metric, np.where(generator.random(n) < share, references, 1 - references), references)
        for share in right
    ]


def scores(metric, n=60, seed=0, noise=(0.3, 0.4)):
    generator = np.random.default_rng(seed)
    references = generator.integers(0, 26, n) / 5
    return [answers(metric, references + size * 5 * generator.standard_normal(n), references) for size in noise]


def perplexities(n=50, seed=0, better=0.1):
    """Two models' likelihoods of the same rows of tokens."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 30, n)
    nll = tokens * generator.gamma(20, 0.2, n)
    value = lambda sums: np.exp(sums[:, 0] / sums[:, 1])  # noqa: E731
    ours = nll - better * tokens + generator.standard_normal(n)
    return [SufficientStats(np.column_stack([each, tokens]), value, tokens) for each in (ours, nll)]


def calibrated(n, seed):
    generator = np.random.default_rng(seed)
    return [answers("ece", size * generator.standard_normal((n, 3)), np.arange(n) % 3) for size in (1, 3)]


KINDS = {
    "accuracy": partial(classes, "accuracy"),
    "f1": partial(classes, "f1"),
    "matthews": partial(classes, "matthews"),
    "ece": lambda seed=0: calibrated(40, seed),
    "pearson": partial(scores, "pearson"),
    "spearman": partial(scores, "spearman"),
    "perplexity": perplexities,
}


def test_mcnemars_p_of_ten_against_two_by_hand():
    arm = np.array([True] * 10 + [False] * 2 + [True] * 30)
    baseline = np.array([False] * 10 + [True] * 2 + [True] * 30)
    # 2 (1 + 12 + 66) / 2^12
    assert mcnemar(arm, baseline) == pytest.approx(158 / 4096)
    assert mcnemar(arm, arm) == 1


def test_holms_correction_by_hand():
    # sorted 0.005 0.01 0.03 0.04 times 4 3 2 1: 0.02 0.03 0.06 0.04, and none below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.7]) == (1, 1)
    assert holm([]) == ()


def test_one_seed_of_accuracy_has_mcnemars_p_and_points_as_unit():
    references = np.zeros(42, dtype=int)
    arm, baseline = np.zeros(42, dtype=int), np.zeros(42, dtype=int)
    baseline[:10], arm[10:12] = 1, 1
    found = paired_difference([answers("accuracy", arm, references)], [answers("accuracy", baseline, references)])
    assert (found.test, found.n) == (MCNEMAR, 42)
    assert found.p == pytest.approx(158 / 4096)
    assert found.value == pytest.approx(100 * 8 / 42)
    # variance of the mean of ten +1, two -1 and thirty 0, and (1.96 + 0.8416) of its root; the bootstrap has noise
    error = 100 * np.sqrt(12 - 64 / 42) / 42
    assert found.detectable == pytest.approx(2.8016 * error, rel=0.08)
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=2.5)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=2.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [1, 3])
def test_swapping_the_arms_turns_the_sign_and_leaves_p(kind, seeds):
    pairs = [KINDS[kind](seed=seed) for seed in range(seeds)]
    if seeds > 1 and not isinstance(pairs[0][0], SufficientStats):  # the same examples in every seed
        pairs = [[replace(one, references=pairs[0][0].references) for one in pair] for pair in pairs]
    arm, baseline = ([pair[side] for pair in pairs] for side in (0, 1))
    there, back = paired_difference(arm, baseline), paired_difference(baseline, arm)
    assert back.value == pytest.approx(-there.value)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p == pytest.approx(there.p, abs=0.02 if there.test == RANDOMISATION else 1e-12)
    assert there.low <= there.value <= there.high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [1, 3])
def test_an_arm_against_itself_shows_nothing(kind, seeds):
    arm = [KINDS[kind]()[0]] * seeds
    found = paired_difference(arm, arm)
    assert (found.value, found.low, found.high, found.p, found.detectable) == (0, 0, 0, 1, None)
    assert correct_for_arms([found])[0].word == "no evidence"


def test_what_is_lower_and_better_counts_as_better():
    arm, baseline = perplexities(better=0.3)
    found = paired_difference([arm], [baseline], higher_is_better=False)
    whole = np.ones((1, 50))
    assert found.value == pytest.approx((baseline.under(whole) - arm.under(whole))[0])
    assert found.low > 0
    assert [
        one.word for one in correct_for_arms([found, paired_difference([baseline], [arm], higher_is_better=False)])
    ] == [
        "better",
        "worse",
    ]


def plain_f1(predictions, references):
    hits = np.sum((predictions == 1) & (references == 1))
    return 100 * 2 * hits / max(np.sum(predictions) + np.sum(references), 1)


def plain_pearson(predictions, references):
    return 100 * np.corrcoef(predictions, references)[0, 1]


@pytest.mark.parametrize(
    ("pair", "plain"), [(classes("f1", 12, 3, (0.9, 0.5)), plain_f1), (scores("pearson", 12, 3), plain_pearson)]
)
def test_randomisation_of_few_examples_is_what_scipy_finds_over_all_swaps(pair, plain):
    from scipy.stats import permutation_test

    arm, baseline = pair
    exact = permutation_test(
        (arm.predictions, baseline.predictions),
        lambda ours, theirs: plain(ours, arm.references) - plain(theirs, arm.references),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    found = np.abs(exact.null_distribution) >= abs(exact.statistic) - 1e-9
    assert 0.01 < found.mean() < 0.9
    assert paired_difference([arm], [baseline]).p == pytest.approx(found.mean(), abs=0.04)


def test_the_p_of_bleu_is_that_of_sacrebleus_own_paired_test():
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.significance import PairedTest

    from kdalign.metrics.text import TEXT_METRICS

    generator = np.random.default_rng(1)
    words = np.array("a the small big dog cat sees hears and runs away home now".split())
    references = [" ".join(generator.choice(words, 12)) for _ in range(60)]

    def guess(share):
        return [
            " ".join(word if generator.random() < share else generator.choice(words) for word in text.split())
            for text in references
        ]

    ours, theirs = guess(0.76), guess(0.66)
    known = [[text] for text in references]
    sums = []
    for texts in (ours, theirs):
        counts = TEXT_METRICS["bleu"].count(texts, known, "en")
        values = partial(np.apply_along_axis, counts.value, 1)
        sums.append(SufficientStats(counts.rows, values, np.array(references)))
    found = paired_difference(sums[:1], sums[1:])
    test = PairedTest(
        [("base", theirs), ("ours", ours)], {"BLEU": BLEU()}, [references], test_type="ar", n_samples=5000
    )
    _, by_system = test()
    base, one = by_system["BLEU"]
    assert found.value == pytest.approx(one.score - base.score)
    assert 0.005 < one.p_value < 0.5
    assert found.p == pytest.approx(one.p_value, abs=0.025)


def test_the_interval_of_one_seed_is_scipys_paired_bootstrap():
    from scipy.stats import bootstrap

    arm = scores("pearson", 150, seed=2)[0]
    noise = 1.5 * np.random.default_rng(3).standard_normal(150)
    baseline = replace(arm, predictions=arm.predictions + noise)  # unpaired, the interval would be far wider

    def statistic(ours, theirs, references):
        return plain_pearson(ours, references) - plain_pearson(theirs, references)

    wanted = bootstrap(
        (arm.predictions, baseline.predictions, arm.references),
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        random_state=0,
    )
    found = paired_difference([arm], [baseline])
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.35 * wanted.standard_error)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.35 * wanted.standard_error)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_correlation_under_weights_is_that_of_examples_written_so_often(metric):
    generator = np.random.default_rng(0)
    references, predictions = generator.integers(0, 6, 30), generator.integers(0, 9, 30) / 3
    weights = generator.integers(0, 4, (5, 30)).astype(float)
    found = METRICS[metric].of_weights(weights, predictions, references)
    for row, value in zip(weights.astype(int), found, strict=True):
        written = METRICS[metric].compute(np.repeat(predictions, row), np.repeat(references, row))
        assert value == pytest.approx(written)
    assert np.isnan(METRICS[metric].of_weights(weights, np.full(30, 0.1), references)).all()


def test_where_only_seeds_vary_the_test_is_students():
    from scipy.stats import ttest_1samp

    by_seed = np.array([1.0, 2.0, 1.5, 3.0, 2.2])
    found = _over_seeds(by_seed, np.zeros((5, 5)), 1000, OVER_SEEDS)
    wanted = ttest_1samp(by_seed, 0)
    interval = wanted.confidence_interval()
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_where_seeds_agree_the_test_is_that_of_the_examples():
    found = _over_seeds(np.full(3, 2.0), np.full((3, 3), 1.44), 1000, OVER_SEEDS)
    # every seed moves with the examples alike: 2 / 1.2 standard errors, and 1.96 of them
    assert found.p == pytest.approx(0.0956, abs=1e-4)
    assert found.high == pytest.approx(2 + 1.96 * 1.2, abs=1e-3)
    assert found.detectable == pytest.approx(2.8016 * 1.2, abs=1e-3)


def test_seeds_and_examples_together_by_hand():
    # mean 4, variance over seeds 3: A = 3 / 3 = 1; off the diagonal 2: C = 2; V = 3
    found = _over_seeds(np.array([2.0, 5.0, 5.0]), np.full((3, 3), 2.0) + np.eye(3), 1000, OVER_SEEDS)
    # (1 * 4.3027 + 2 * 1.9600) / 3 = 2.7409 times the root of 3
    assert found.high - found.value == pytest.approx(4.7473, abs=1e-3)
    assert found.p == pytest.approx(0.0748, abs=0.02)
    assert found.low < 0 < found.p - 0.05


def test_three_seeds_that_agree_by_luck_prove_nothing():
    found = _over_seeds(np.full(3, 2.0), 9.0 * np.eye(3), 277, OVER_SEEDS)
    assert found.p == pytest.approx(0.2482, abs=1e-4)  # 2 over the root of 9 / 3
    assert found.low < 0


def test_the_difference_over_tasks_is_their_mean_and_seeds_vary_as_wholes():
    def task(by_seed, variance, n):
        values = np.array(by_seed)
        return PairedDifference(float(values.mean()), 0, 0, 1, None, n, "", values, variance * np.ones((3, 3)))

    found = macro_difference([task([1.0, 2.0, 3.0], 4.0, 100), task([3.0, 2.0, 1.0], 5.0, 50)])
    assert (found.value, found.n) == (2, 150)
    assert list(found.by_seed) == [2, 2, 2]  # what one task loses the other wins
    assert found.covariance[0, 1] == pytest.approx(9 / 4)
    assert found.high == pytest.approx(2 + 1.96 * 1.5, abs=1e-3)


def test_no_p_is_below_what_so_few_pairs_can_show():
    arm, baseline = (answers("accuracy", np.full(6, value), np.zeros(6, dtype=int)) for value in (0, 1))
    assert paired_difference([arm], [baseline]).p == pytest.approx(2 / 2**6)
    assert paired_difference([arm] * 3, [baseline] * 3).p == pytest.approx(2 / 2**6)


def test_many_classes_need_no_more_memory_than_few():
    references = np.arange(600) % 70
    arm, baseline = (answers("accuracy", np.where(np.arange(600) % step, references, 0), references) for step in (9, 5))
    found = paired_difference(
        [replace(arm, metrics=(METRICS["macro_f1"],))], [replace(baseline, metrics=(METRICS["macro_f1"],))]
    )
    assert (found.test, found.p < 0.01) == (RANDOMISATION, True)
    assert paired_difference([arm], [baseline]).value == pytest.approx(
        100 * np.mean((arm.predictions == references) * 1.0 - (baseline.predictions == references))
    )


def test_answers_to_other_examples_are_refused():
    arm, baseline = classes("accuracy")
    other = replace(baseline, references=1 - baseline.references)
    with pytest.raises(UsageError, match="mine: the examples or their order differ"):
        paired_difference([arm], [other], what="mine")
    short = answers("accuracy", baseline.predictions[:50], baseline.references[:50])
    with pytest.raises(UsageError, match="answers to 50 and 200 examples cannot be paired"):
        paired_difference([arm], [short])
    one = answers("accuracy", [1], [1])
    with pytest.raises(UndefinedDifference, match="1 examples are too few"):
        paired_difference([one], [one])
    constant = answers("pearson", np.ones(9), np.arange(9.0))
    with pytest.raises(UndefinedDifference, match="a value is undefined"):
        paired_difference([constant], [constant])


def test_the_word_follows_the_corrected_p():
    references = np.zeros(42, dtype=int)
    arm, baseline = np.zeros(42, dtype=int), np.zeros(42, dtype=int)
    baseline[:10], arm[10:12] = 1, 1
    found = paired_difference([answers("accuracy", arm, references)], [answers("accuracy", baseline, references)])
    assert correct_for_arms([found])[0].word == "better"
    assert [one.word for one in correct_for_arms([found] * 10)] == ["no evidence"] * 10
    assert correct_for_arms([found] * 10)[0].p_holm == pytest.approx(min(1, 10 * found.p))


def test_a_baselines_resamples_are_taken_once_for_all_arms_and_seeds_share_the_draws():
    _drawn.cache_clear()
    _metric_resampled.cache_clear()
    seeds = [scores("spearman", 300, seed, noise=(0.3, 0.4, 0.5)) for seed in range(2)]
    for arm in (0, 1):
        assert 0 <= paired_difference([seed[arm] for seed in seeds], [seed[2] for seed in seeds]).p <= 1
    assert _drawn.cache_info().misses == 1
    assert _metric_resampled.cache_info().misses == 3 * len(seeds)  # two arms and one baseline


@pytest.mark.parametrize(
    "setting", first_only([SMALL, replace(SMALL, seeds=3, luck=2.0), replace(OTHERS[0], seeds=3)]), ids=str
)
def test_few_of_100_nulls_are_called_a_difference(setting):
    assert rate(setting, 100) <= 11  # more has a chance of 0.4 % at a true rate of 5 %


def test_a_difference_that_is_there_is_found():
    assert rate(replace(SMALL, seeds=5, luck=1.0), 40, better=12.0) >= 90


@pytest.mark.slow
@pytest.mark.parametrize("setting", [*SETTINGS, *TWO, *OTHERS, *MACRO], ids=str)
def test_at_most_six_per_cent_of_two_thousand_nulls_are_called_a_difference(setting):
    assert rate(setting) <= 6.0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_arms_that_reach_the_same_f1_by_different_ways_are_not_told_apart(seeds):
    assert trade_rate(seeds) <= 6.0
