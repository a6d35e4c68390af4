"""Metrics and intervals against numbers worked by hand and published formulas, and names that stand for code."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data.tasks import GLUE, ClassificationTask, DataSource
from kdalign.errors import UsageError
from kdalign.evaluation.predictions import agreement, score_all
from kdalign.metrics import intervals
from kdalign.metrics.classification import METRICS, Metric, Score, score
from kdalign.metrics.intervals import example_interval, mean_interval
from kdalign.registry import allow_code, resolve
from support.covering import first_only

# Class 1: 2 found, 1 false alarm, 1 missed; class 0: 1 found, 1 false alarm, 1 missed.
PREDICTIONS, REFERENCES = np.array([1, 1, 1, 0, 0]), np.array([1, 0, 1, 1, 0])


def compute(name: str, predictions, references) -> float:
    return METRICS[name].compute(np.array(predictions), np.array(references))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 100 * 3 / 5),
        ("f1", 100 * 2 * 2 / (2 * 2 + 1 + 1)),
        ("macro_f1", 100 * (2 / 3 + 1 / 2) / 2),
        ("matthews", 100 * (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
    ],
)
def test_a_class_metric_by_hand(name, value):
    assert compute(name, PREDICTIONS, REFERENCES) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "value"),
    [
        ("pearson", [1.0, 2.0, 3.0], [1.0, 2.0, 4.0], 300 / math.sqrt(28 / 3)),
        ("pearson", [1.0, 2.0, 3.0], [-2.0, -4.0, -6.0], -100),
        ("spearman", [1.0, 2.0, 3.0], [1.0, 2.0, 400.0], 100),
        ("spearman", [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 100 * (1 - 6 * 2 / (4 * 15))),
        ("spearman", [1.0, 1.0, 2.0], [1.0, 2.0, 3.0], 150 / math.sqrt(3)),  # ranks 1.5 1.5 3
    ],
)
def test_a_correlation_by_hand(name, predictions, references, value):
    assert compute(name, predictions, references) == pytest.approx(value)


def test_f1_is_of_class_one():
    assert compute("f1", [1, 0, 0, 0], [1, 1, 0, 0]) == pytest.approx(100 * 2 / 3)
    assert compute("f1", [0, 1, 1, 1], [0, 0, 1, 1]) == pytest.approx(100 * 4 / 5)


def test_macro_f1_gives_a_rare_class_the_same_say():
    # Nine of ten right, the rare class never found: F1 18/19 and 0.
    assert compute("macro_f1", [0] * 10, [0] * 9 + [1]) == pytest.approx(100 * (18 / 19) / 2)
    assert compute("accuracy", [0] * 10, [0] * 9 + [1]) == pytest.approx(90)


def test_answers_of_one_class_only_have_a_matthews_of_zero():
    assert compute("matthews", [1, 1, 1], [1, 1, 1]) == 0
    assert compute("matthews", [0, 0, 0], [1, 0, 1]) == 0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(("predictions", "references"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([1], [1])])
def test_a_correlation_with_a_constant_has_no_value(name, predictions, references):
    found = score(METRICS[name], np.array(predictions, dtype=float), np.array(references, dtype=float))
    assert found.value is None
    assert found.n == len(references)


def test_a_score_says_how_it_was_made():
    found = score(METRICS["f1"], PREDICTIONS, REFERENCES)
    assert (found.metric, found.unit, found.n, found.higher_is_better) == ("f1", "%", 5, True)
    name, _, version = found.signature.partition(" ")
    assert name == "scikit-learn"
    assert version[0].isdigit()
    assert found.to_json()["value"] == pytest.approx(200 / 3)


Z = 1.959963984540054  # the 97.5 % point of the normal distribution


@pytest.mark.parametrize(("hits", "n"), [(8, 10), (0, 10), (10, 10), (801, 872), (1, 2)])
def test_the_interval_of_accuracy_is_wilsons(hits, n):
    # Wilson 1927: (p + z^2/2n +- z sqrt(p (1-p) / n + z^2 / 4n^2)) / (1 + z^2/n)
    p = hits / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    references = np.zeros(n, dtype=int)
    predictions = np.array([0] * hits + [1] * (n - hits))
    low, high = example_interval("accuracy", METRICS["accuracy"].compute, predictions, references)
    assert low == pytest.approx(100 * (centre - half), abs=1e-9)
    assert high == pytest.approx(100 * (centre + half), abs=1e-9)


def test_the_interval_of_eight_of_ten_is_49_to_94_per_cent():
    low, high = example_interval("accuracy", METRICS["accuracy"].compute, np.arange(10) < 8, np.ones(10))
    assert (low, high) == (pytest.approx(49.02, abs=0.01), pytest.approx(94.33, abs=0.01))


def noisy(n: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    references = generator.normal(size=n)
    return references + generator.normal(size=n), references


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_bootstrap_interval_holds_the_value_and_is_the_same_every_time(name):
    predictions, references = noisy(60)
    function = METRICS[name].compute
    low, high = example_interval(name, function, predictions, references)
    assert low < function(predictions, references) < high
    assert example_interval(name, function, predictions, references) == (low, high)


def test_a_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution():
    # The mean of n draws has the standard error s / sqrt(n): an outside reference for resampling rows.
    values = np.random.default_rng(3).normal(10, 2, 400)
    low, high = example_interval("mean", lambda p, r: float(p.mean()), values, values)
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - Z * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + Z * error, abs=0.1 * error)


def test_a_bootstrap_resamples_predictions_and_references_together():
    predictions = np.arange(50.0)
    low, high = example_interval("pearson", METRICS["pearson"].compute, predictions, 2 * predictions + 1)
    assert (low, high) == (pytest.approx(100), pytest.approx(100))


def test_class_metrics_of_few_examples_have_intervals_without_a_warning(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 100)  # some resamples hold one class only
    for name in ("f1", "macro_f1", "matthews"):
        metric = METRICS[name]
        low, high = example_interval(name, metric.compute, PREDICTIONS, REFERENCES, metric.of_counts)
        assert -100 <= low <= high <= 100


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=12))
def test_a_metric_from_confusion_counts_is_that_of_scikit_learn(pairs):
    for name, classes in (("f1", 2), ("macro_f1", 3), ("matthews", 3)):
        predictions, references = np.minimum(np.array(pairs).T, classes - 1)
        counts = np.zeros((1, classes, classes), dtype=int)
        np.add.at(counts[0], (references, predictions), 1)
        assert METRICS[name].of_counts(counts)[0] == pytest.approx(compute(name, predictions, references), abs=1e-9)


@pytest.mark.parametrize("name", first_only(["f1", "macro_f1", "matthews"]))
def test_resampling_counts_is_resampling_examples(name):
    generator = np.random.default_rng(5)
    references = generator.integers(0, 2, 400)
    predictions = np.where(generator.random(400) < 0.8, references, 1 - references)
    metric = METRICS[name]
    by_counts = example_interval(name, metric.compute, predictions, references, metric.of_counts)
    by_examples = example_interval(name, metric.compute, predictions, references)
    assert by_counts == pytest.approx(by_examples, abs=1.0)  # two draws of 1,000


def test_where_nothing_spreads_there_is_no_interval():
    one = np.array([1.0])
    assert example_interval("pearson", METRICS["pearson"].compute, one, one) == (None, None)
    constant = np.ones(20)
    assert example_interval("pearson", METRICS["pearson"].compute, constant, np.arange(20.0)) == (None, None)


def test_the_interval_of_a_mean_over_three_seeds_by_hand():
    # Mean 91, s = 1, t(0.975, 2) = 4.303: half the width is 4.303 / sqrt(3) = 2.484.
    mean, half = mean_interval([90.0, 91.0, 92.0])
    assert mean == pytest.approx(91)
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)


def test_the_interval_of_a_mean_over_two_seeds_by_hand():
    # t(0.975, 1) = 12.706, s = sqrt(2): 12.706 * sqrt(2) / sqrt(2).
    assert mean_interval([1.0, 3.0]) == (pytest.approx(2), pytest.approx(12.7062, abs=1e-3))


def test_a_single_seed_has_no_interval():
    assert mean_interval([90.0]) == (90.0, None)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.floats(-50, 50))
def test_an_interval_moves_with_its_values(values, shift):
    mean, half = mean_interval(values)
    moved, same = mean_interval([value + shift for value in values])
    assert moved == pytest.approx(mean + shift, abs=1e-9)
    assert same == pytest.approx(half, abs=1e-6)


def test_agreement_is_the_share_of_equal_answers_whatever_the_labels_say():
    found = agreement(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
    assert (found.metric, found.value, found.n) == ("agreement", 75.0, 4)
    assert found.low < 75 < found.high


def test_agreement_of_scores_is_their_correlation():
    student, teacher = noisy(30)
    found = agreement(student, teacher)
    assert (found.metric, found.value) == ("agreement", pytest.approx(100 * np.corrcoef(student, teacher)[0, 1]))


def test_every_metric_of_a_task_is_scored_in_order_with_an_interval(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    found = score_all(GLUE["mrpc"], PREDICTIONS, REFERENCES, ("f1", "accuracy"))
    assert [each.metric for each in found] == ["f1", "accuracy"]
    assert all(each.low <= each.value <= each.high for each in found)


def task_with(*metrics: str, labels=("a", "b")) -> ClassificationTask:
    return ClassificationTask("mine", ("text",), labels, metrics, DataSource())


@pytest.mark.parametrize(
    ("metric", "labels", "said"),
    [
        ("pearson", ("a", "b"), r"not for 2 classes \(fitting: accuracy, f1, macro_f1, matthews, ece\)"),
        ("accuracy", (), r"not for regression \(fitting: pearson, spearman\)"),
        ("f1", ("a", "b", "c"), r"not for 3 classes \(fitting: accuracy, macro_f1, matthews, ece\)"),
        ("acuracy", ("a", "b"), "unknown metric 'acuracy'; did you mean 'accuracy'"),
    ],
)
def test_a_metric_that_does_not_fit_the_task_is_refused(metric, labels, said):
    with pytest.raises(UsageError, match=said):
        task_with(metric, labels=labels)


MINE = """
from __future__ import annotations
from dataclasses import dataclass
from kdalign.plugins import Metric

@dataclass
class Settings:
    worth: float = 7.0

def seven(predictions, references):
    return Settings().worth

Seven = Metric("seven", seven, "mine")
"""


def test_a_metric_of_the_users_own_file_scores_a_task(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    name = f"{tmp_path}/mine.py:Seven"
    with allow_code():
        task = task_with(name)
        (found,) = score_all(task, PREDICTIONS, REFERENCES, task.metrics)
    assert (found.metric, found.value, found.signature) == ("seven", 7.0, "mine")


def test_a_name_that_is_no_metric_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(UsageError, match=r"mine\.py:seven.* a function"), allow_code():
        task_with(f"{tmp_path}/mine.py:seven")


def test_a_name_resolves_to_what_is_shipped_or_to_a_modules_or_files_attribute(tmp_path):
    (tmp_path / "mine.py").write_text("answer = 42\n")
    shipped = {"one": 1, "math:pi": 3}
    with allow_code():
        assert resolve("one", shipped, "number") == 1
        assert resolve("math:pi", shipped, "number") == 3, "shipped names come first"
        assert resolve("kdalign.metrics.classification:METRICS", shipped, "number") is METRICS
        assert resolve(f"{tmp_path}/mine.py:answer", shipped, "number") == 42


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("accurracy", "unknown metric 'accurracy'; did you mean 'accuracy'"),
        (
            "kdalign.metrics.classification:METRICSS",
            "unknown name in kdalign.metrics.classification 'METRICSS'; did you mean 'METRICS'",
        ),
        ("os:system", "'os' is part of Python and has no metric"),
        ("os.path:join", "'os.path' is part of Python"),
        ("no_such_module:Name", "cannot import 'no_such_module'"),
        ("kdalign.nothing:Name", "cannot import"),
        (":Name", "unknown metric"),
        (".relative:Name", "unknown metric"),
        ("nowhere.py:Name", r"no file 'nowhere\.py'"),
        ("", "unknown metric"),
    ],
)
def test_a_name_that_stands_for_nothing_says_why(name, said):
    with pytest.raises(UsageError, match=said) as error, allow_code():
        resolve(name, METRICS, "metric")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["def broken(:\n", "import no_such_module\n"])
def test_a_file_that_python_cannot_read_is_named(text, tmp_path):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UsageError, match=r"cannot import '.*broken\.py'") as error, allow_code():
        resolve(f"{tmp_path}/broken.py:Name", METRICS, "metric")
    assert "\n" not in str(error.value)


def test_a_metric_may_be_better_when_lower():
    metric = replace(METRICS["accuracy"], name="errors", higher_is_better=False)
    assert isinstance(metric, Metric)
    assert not score(metric, PREDICTIONS, REFERENCES).higher_is_better


def test_calibration_error_by_hand():
    # Two answers at 0.75, one of them right, and one at 0.6, wrong: (2 |0.5 - 0.75| + |0 - 0.6|) / 3.
    logits = np.log(np.array([[0.75, 0.25], [0.25, 0.75], [0.6, 0.4]]))
    references = np.array([0, 0, 1])
    metric = METRICS["ece"]
    assert metric.compute(logits, references) == pytest.approx(100 * (0.5 + 0.6) / 3)
    assert metric.compute(logits + 7, references) == pytest.approx(metric.compute(logits, references))
    sure = np.array([[9.0, -900], [-900, 9.0]])
    assert metric.compute(sure, np.array([0, 1])) == 0
    assert metric.compute(sure, np.array([1, 0])) == 100
    assert not metric.higher_is_better


@pytest.mark.parametrize(("n", "classes"), [(2, 2), (64, 2), (333, 17)])
def test_resamples_of_the_calibration_error_at_once_are_those_of_one_at_a_time(monkeypatch, n, classes):
    monkeypatch.setattr(intervals, "MOST_ROWS", 100 * n + 1)  # in ten blocks
    generator, metric = np.random.default_rng(3), METRICS["ece"]
    logits = np.asfortranarray(generator.normal(size=(n, classes)), dtype="f4")
    references = generator.integers(0, classes, n)
    blocks = []

    def at_once(*given):
        blocks.append(metric.of_rows(*given))
        return blocks[-1]

    found = example_interval("ece", metric.compute, logits, references, None, at_once)
    draws = np.random.default_rng(0)
    rows = [draws.integers(0, n, n) for _ in range(intervals.RESAMPLES)]
    expected = np.array([metric.compute(logits[each], references[each]) for each in rows])
    assert [len(block) for block in blocks] == [100] * 10
    assert np.array_equal(np.concatenate(blocks), expected)
    assert found == example_interval("ece", metric.compute, logits, references)


def test_a_classifiers_calibration_is_of_its_logits():
    task = GLUE["sst2"]
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8]] * 10))
    (made,) = score_all(task, logits.argmax(1), np.array([0, 1] * 10), ["ece"], logits=logits)
    assert made.value == pytest.approx(15.0)
    assert made.low == pytest.approx(10.0, abs=5)


def correlation(predictions, references, name="pearson"):
    return score(METRICS[name], np.asarray(predictions), np.asarray(references))


def test_a_correlation_with_a_constant_says_which_side_is_constant():
    assert correlation([3.1, 3.1], [1.0, 2.5]).reason == (
        "all 2 predictions are 3.1, and a constant has no correlation"
    )
    assert "all 2 references are 1" in correlation([3.1, 3.2], [1.0, 1.0]).reason
    assert correlation([3.1], [1.0]).reason == "one example has no correlation"


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_numbers_that_differ_by_rounding_alone_are_constant(name):
    noise = np.float32(2.5) + np.float32(2.4e-7) * np.array([0, 1, 0, 1], dtype=np.float32)
    assert "constant" in correlation(noise, [1.0, 2.0, 3.0, 4.0], name).reason
    cosines = 1 - 1e-15 * np.arange(4)
    assert correlation(cosines, [1.0, 2.0, 3.0, 4.0], name).value is None


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_tiny_and_huge_numbers_correlate_as_others_do(name):
    references = np.array([1.0, 2.0, 3.0, 5.0])
    for scale in (1e-9, 1.0, 1e150):
        predictions = scale * np.array([1.0, 3.0, 2.0, 6.0])
        found = correlation(predictions, references, name)
        assert found.value == pytest.approx(correlation([1.0, 3.0, 2.0, 6.0], references, name).value)
        weighted = METRICS[name].of_weights(np.ones((1, 4)), predictions, references)
        assert weighted[0] == pytest.approx(found.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinite_prediction_makes_a_score_undefined_with_its_count(bad):
    for name in ("pearson", "spearman"):
        found = correlation([1.0, bad, 2.0], [1.0, 2.0, 3.0], name)
        assert found.value is None
        assert found.reason == "1 of 3 predictions are infinite or NaN"
        assert example_interval(name, METRICS[name].compute, np.array([1.0, bad, 2.0]), np.arange(3.0)) == (None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_no_score_holds_a_value_that_is_no_number(value):
    made = Score("mine", value, "", 3, True, "by hand", 1.0, 2.0, note="of the class 'a'")
    assert (made.value, made.low, made.high, made.note) == (None, None, None, "")
    assert made.reason
    assert "constant" in Score("mine", value, "", 3, True, "by hand", reason="a constant").reason


def test_a_score_with_a_value_has_no_reason_and_no_half_interval():
    made = Score("mine", 1.0, "", 3, True, "by hand", 0.5, float("inf"), reason="nothing")
    assert (made.value, made.low, made.high, made.reason) == (1.0, None, None, "")


def test_scores_of_older_files_have_a_reason_where_they_have_no_value():
    tree = {
        "metric": "f1",
        "value": None,
        "unit": "%",
        "n": 3,
        "higher_is_better": True,
        "signature": "",
        "of": "later",
    }
    assert Score.from_json(tree).reason == "nothing says why"
    assert Score.from_json({**tree, "reason": "one example"}).reason == "one example"
    assert Score.from_json({**tree, "value": 1.0}).reason == ""


def test_a_zero_by_convention_says_so():
    assert "0 by convention: the predictions are of one class" in correlation([1, 1], [0, 1], "matthews").note
    assert "0 by convention" in correlation([0, 0], [0, 0], "f1").note
    assert correlation([0, 1], [0, 1], "f1").note == ""


def test_no_example_is_no_score_and_no_warning():
    assert correlation(np.zeros(0, int), np.zeros(0, int), "accuracy").reason == "there is no example"


@pytest.mark.filterwarnings("error")
def test_numbers_whose_differences_overflow_are_undefined_or_right_but_no_warning():
    predictions, references = np.array([1e308, -1e308, 2.0]), np.array([1.0, 2.0, 3.0])
    found = score(METRICS["pearson"], predictions, references)
    assert found.value is not None or found.reason == "the numbers are too large to compute with"
    weighted = METRICS["pearson"].of_weights(np.ones((1, 3)), predictions, references)
    assert weighted[0] == pytest.approx(score(METRICS["pearson"], predictions / 1e308, references).value)


def test_two_metrics_of_one_name_are_refused_before_a_model_is_scored(kdalign, teacher, data, tmp_path):
    (tmp_path / "own.py").write_text(
        "from kdalign.plugins import Metric\naccuracy = Metric('accuracy', lambda ours, right: 5.0, 'mine')\n"
    )
    words = ["eval", teacher, "--task", "sst2", "--data", data, "--metrics", "accuracy,own.py:accuracy"]
    status, _, err = kdalign(*words)
    assert (status, "metrics 'accuracy' and 'own.py:accuracy' have one name" in err) == (2, True), err
    assert not (tmp_path / "runs").exists()
