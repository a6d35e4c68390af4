"""From finished runs to verdicts: what is paired, what is refused, and what is said."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from kdalign.comparison.arm_run import ArmRun
from kdalign.comparison.verdicts import compare_arms
from kdalign.data.tasks import find_task
from kdalign.errors import UsageError
from kdalign.metrics.classification import METRICS
from kdalign.recipe import Recipe
from kdalign.runs import archive
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import Predictions, TokenPredictions, write_predictions, write_token_predictions
from kdalign.runs.record import SCHEMA, ModelRecord, RunRecord

N = 120


def finished(path, task, values, seed=0, fingerprint="abcdabcdabcdabcd", n=N, split="validation", units=None):
    """A run's record beside its predictions; scores by hand."""
    folder = RunFolder(path)
    recipe = Recipe.model_validate({"teacher": "t", "data": {"task": task}, "train": {"seed": seed}})
    (path / "recipe.yaml").write_text(recipe.dump())
    scores = [
        {
            "metric": metric,
            "value": value,
            "unit": "%" if metric in METRICS else "",
            "n": (units or {}).get(metric, n),
            "higher_is_better": metric in METRICS,
            "signature": "hand",
            "low": None,
            "high": None,
        }
        for metric, value in values.items()
    ]
    record = RunRecord(
        schema=SCHEMA,
        version="0",
        created="2025-01-01T00:00:00+00:00",
        task=task,
        metrics=tuple(values),
        recipe=recipe.model_dump(mode="json"),
        student=ModelRecord("s", "0", 1_000_000, 4.0, "trained", 2.0),
        teacher=None,
        data={"reported": {split: {"n": n, "fingerprint": fingerprint}}},
        scores={split: {"student": scores, "teacher": [], "agreement": None}},
        training={"steps": 5, "seconds": 2.0, "examples": 20},
        environment={},
        seconds=3.0,
    )
    folder.write_record(record)
    return ArmRun.read(folder)


def classifier(path, task, right, seed=0, teacher=True, luck=0, **changes):
    """A run of a GLUE task that answers so often rightly."""
    whole = find_task(task)
    of_task = np.random.default_rng(len(task))
    generator = np.random.default_rng([seed, luck, int(1000 * right)])
    if whole.regression:
        labels = of_task.integers(0, 26, N) / 5
        values = (labels + 5 * (1 - right) * generator.standard_normal(N)).astype(np.float32)
        logits = values[:, None]
    else:
        labels = of_task.integers(0, len(whole.labels), N)
        wrong = (labels + 1) % len(whole.labels)
        values = np.where(generator.random(N) < right, labels, wrong)
        logits = np.eye(len(whole.labels), dtype=np.float32)[values]
    said = labels if teacher is True else teacher
    file = RunFolder(path).predictions(changes.get("split", "validation"))
    write_predictions(
        file,
        whole,
        Predictions(logits, values),
        labels,
        None if said is None else Predictions(np.empty((len(said), 0)), said),
    )
    made = {name: METRICS[name].compute(values, labels) for name in whole.metrics}
    return finished(path, task, made, seed, **changes)


def modeller(path, worse=0.0, seed=0, shift=0, words=500, teacher=2.5, turned=0):
    """A run of a language model on 80 rows of tokens, and its teacher's answers."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(5, 20, 80) + shift
    nll = tokens * 3.0 + np.random.default_rng([seed, 7]).standard_normal(80) + worse * tokens
    best = generator.integers(0, 50, tokens.sum())
    off = np.random.default_rng([seed, int(100 * worse)]).random(len(best)) < 0.3 + worse
    ours = TokenPredictions(nll, tokens, np.where(off, 99, best))
    theirs = TokenPredictions(tokens * teacher, tokens, np.where(np.arange(len(best)) < turned, 98, best))
    write_token_predictions(RunFolder(path).predictions("validation"), ours, theirs)
    total = nll.sum()
    values = {"ppl": float(np.exp(total / tokens.sum())), "word_ppl": float(np.exp(total / words))}
    return finished(path, "lm", values, seed, n=80, units={"ppl": int(tokens.sum()), "word_ppl": words})


def arm(tmp_path, name, tasks, right, seeds, **changes):
    return {
        (task, seed): classifier(tmp_path / f"{name}-{task}-{seed}", task, right, seed, **changes)
        for task in tasks
        for seed in seeds
    }


def found(judgement, arm, key):
    [one] = [one for one in judgement.verdicts if (one.arm, one.key) == (arm, key)]
    return one


def test_one_seed_of_one_task_by_mcnemar_with_holm_over_the_arms(tmp_path):
    arms = {
        name: arm(tmp_path, name, ["sst2"], right, [0]) for name, right in (("soft", 0.8), ("b", 0.95), ("c", 0.81))
    }
    judgement = compare_arms(arms, "soft")
    tables = {name: pd.read_parquet(tmp_path / f"{name}-sst2-0" / "predictions/validation.parquet") for name in arms}
    right = {name: (table["prediction"] == table["label"]).to_numpy() for name, table in tables.items()}
    wins, losses = np.sum(right["b"] & ~right["soft"]), np.sum(~right["b"] & right["soft"])
    better = found(judgement, "b", "sst2/accuracy")
    assert better.verdict.p == pytest.approx(binomtest(wins, wins + losses).pvalue)
    assert better.verdict.difference == pytest.approx(100 * (wins - losses) / N)
    assert better.verdict.p_holm == pytest.approx(2 * better.verdict.p)
    assert (better.verdict.word, better.primary, better.unit, better.seeds) == ("better", True, "%", (0,))
    alike = found(judgement, "c", "sst2/accuracy").verdict
    assert (alike.word, alike.p_holm) == ("no evidence", alike.p)
    back = found(compare_arms({name: arms[name] for name in ("soft", "b")}, "b"), "soft", "sst2/accuracy").verdict
    assert (back.word, back.difference, back.p) == ("worse", -better.verdict.difference, better.verdict.p)
    assert any("one seed" in note for note in judgement.notes)
    assert not any(one.key in ("macro", "sst2") for one in judgement.verdicts)
    json.dumps(judgement.to_json())


def test_several_tasks_and_seeds_have_their_metrics_means_agreement_and_macro(tmp_path):
    tasks, seeds = ["mrpc", "sst2", "stsb"], [0, 1, 2]
    arms = {name: arm(tmp_path, name, tasks, right, seeds) for name, right in (("a", 0.7), ("b", 0.95))}
    judgement = compare_arms(arms, "a")
    keys = [one.key for one in judgement.verdicts]
    assert keys == [
        *("mrpc/f1", "mrpc/accuracy", "mrpc", "mrpc/agreement", "sst2/accuracy", "sst2/agreement"),
        *("stsb/pearson", "stsb/spearman", "stsb", "stsb/agreement", "macro", "agreement"),
    ]
    assert {one.verdict.word for one in judgement.verdicts} == {"better"}
    assert {(one.seeds, one.verdict.seeds) for one in judgement.verdicts} == {((0, 1, 2), 3)}
    means = []
    for task in tasks:
        values = {
            name: [np.mean([score.value for score in runs[task, seed].scores]) for seed in seeds]
            for name, runs in arms.items()
        }
        means.append(np.mean(values["b"]) - np.mean(values["a"]))
        key = task if len(find_task(task).metrics) > 1 else f"{task}/accuracy"
        assert found(judgement, "b", key).verdict.difference == pytest.approx(means[-1])
    macro = found(judgement, "b", "macro")
    assert macro.verdict.difference == pytest.approx(np.mean(means))
    assert (macro.verdict.n, macro.task) == (3 * N, "")
    assert [one.key for one in judgement.verdicts if one.primary] == ["mrpc/f1", "sst2/accuracy", "stsb/pearson"]


def test_the_macro_pairs_each_seed_with_itself(tmp_path):
    right = {0: 0.9, 1: 0.6, 2: 0.75}  # seeds with luck that both arms share: paired, it takes no part
    arms = {
        name: {
            (task, seed): classifier(tmp_path / f"{name}-{task}-{seed}", task, share + better, seed, luck=name == "b")
            for task in ("sst2", "rte")
            for seed, share in right.items()
        }
        for name, better in (("soft", 0.0), ("b", 0.05))
    }
    judgement = compare_arms(arms, "soft")
    macro, tasks = (
        found(judgement, "b", "macro"),
        [found(judgement, "b", f"{task}/accuracy") for task in ("sst2", "rte")],
    )
    assert macro.verdict.difference == pytest.approx(np.mean([one.verdict.difference for one in tasks]))
    assert macro.verdict.high - macro.verdict.low < 30, "of seeds 15 points apart, crossed, it would be 74"


def test_a_task_without_a_defined_difference_leaves_no_macro(tmp_path):
    def constant(path, seed):
        made = classifier(path, "stsb", 0.9, seed)
        file = made.folder.predictions("validation")
        pd.read_parquet(file).assign(prediction=np.float32(2.5)).to_parquet(file)
        return ArmRun.read(made.folder)

    arms = {name: arm(tmp_path, name, ["sst2", "rte"], 0.8, [0, 1]) for name in ("soft", "b")}
    arms["soft"] |= arm(tmp_path, "soft", ["stsb"], 0.8, [0, 1])
    arms["b"] |= {("stsb", seed): constant(tmp_path / f"b-stsb-{seed}", seed) for seed in (0, 1)}
    keys = {one.key for one in compare_arms(arms, "soft").verdicts}
    assert {"sst2/accuracy", "rte/accuracy"} <= keys
    assert "macro" not in keys


def test_an_arm_that_answers_as_the_baseline_does_has_no_evidence(tmp_path):
    runs = arm(tmp_path, "a", ["sst2"], 0.8, [0, 1, 2])
    for one in compare_arms({"a": runs, "b": runs}, "a").verdicts:
        assert (one.verdict.difference, one.verdict.p, one.verdict.word) == (0, 1, "no evidence")


def test_seeds_that_one_arm_lacks_are_left_out_and_named(tmp_path):
    arms = {"a": arm(tmp_path, "a", ["sst2", "rte"], 0.8, [0, 1, 2]), "b": arm(tmp_path, "b", ["sst2"], 0.8, [1, 2, 3])}
    arms["b"] |= arm(tmp_path, "b", ["rte"], 0.8, [2])
    judgement = compare_arms(arms, "a")
    assert found(judgement, "b", "sst2/accuracy").seeds == (1, 2)
    assert found(judgement, "b", "macro").seeds == (2,)
    assert "b and a, sst2: seeds 0 3 left out, which only one of them has" in judgement.notes
    assert "b and a, means over tasks: seeds 1 left out, which not all tasks have" in judgement.notes
    none = compare_arms({"a": arm(tmp_path, "a", ["sst2"], 0.8, [0]), "b": arm(tmp_path, "b", ["sst2"], 0.8, [1])}, "a")
    assert none.verdicts == ()
    assert "b and a, sst2: no seed in common, no verdict" in none.notes


def test_runs_scored_on_different_data_are_refused_by_name(tmp_path):
    arms = {
        "a": arm(tmp_path, "a", ["sst2"], 0.8, [0]),
        "b": arm(tmp_path, "b", ["sst2"], 0.8, [0], fingerprint="ef" * 8),
    }
    with pytest.raises(UsageError, match=r"runs '.*a-sst2-0' and '.*b-sst2-0' were scored on different data") as error:
        compare_arms(arms, "a")
    assert "[abcdabcd]" in str(error.value)
    assert "[efefefef]" in str(error.value)


def test_a_run_whose_answers_are_gone_is_named(tmp_path):
    arms = {name: arm(tmp_path, name, ["sst2"], 0.8, [0]) for name in "ab"}
    (tmp_path / "b-sst2-0/predictions/validation.parquet").unlink()
    with pytest.raises(UsageError, match=r"run '.*b-sst2-0' has no predictions/validation.parquet"):
        compare_arms(arms, "a")


def test_an_unknown_baseline_is_answered_with_the_nearest_arm(tmp_path):
    arms = {name: arm(tmp_path, name, ["sst2"], 0.8, [0]) for name in ("labels", "soft")}
    with pytest.raises(UsageError, match=r"unknown baseline 'sfot'; did you mean 'soft'\?"):
        compare_arms(arms, "sfot")
    with pytest.raises(UsageError, match="give another arm"):
        compare_arms({"soft": arms["soft"]}, "soft")


def test_agreement_with_other_teachers_is_not_compared(tmp_path):
    other = np.zeros(N, dtype=int)
    arms = {"a": arm(tmp_path, "a", ["sst2"], 0.8, [0]), "b": arm(tmp_path, "b", ["sst2"], 0.8, [0], teacher=other)}
    judgement = compare_arms(arms, "a")
    assert [one.key for one in judgement.verdicts] == ["sst2/accuracy"]
    assert any("had different teachers, no verdict on agreement" in note for note in judgement.notes)
    alone = {name: arm(tmp_path, name, ["sst2"], 0.8, [0], teacher=None) for name in "cd"}
    assert [one.key for one in compare_arms(alone, "c").verdicts] == ["sst2/accuracy"]


def test_the_first_split_stands_for_the_task(tmp_path):
    arms = {name: arm(tmp_path, name, ["mnli"], 0.8, [0], split="validation_matched") for name in "ab"}
    extra = arms["b"]["mnli", 0]
    scores = {**extra.record.scores, "validation_mismatched": {"student": [], "teacher": [], "agreement": None}}
    arms["b"]["mnli", 0] = replace(extra, record=replace(extra.record, scores=scores))
    assert [one.key for one in compare_arms(arms, "a").verdicts] == ["mnli/accuracy", "mnli/agreement"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_lower_perplexity_is_better_and_its_words_are_the_splits(tmp_path, seeds):
    arms = {
        name: {("lm", seed): modeller(tmp_path / f"{name}-{seed}", worse, seed) for seed in range(seeds)}
        for name, worse in (("base", 0.1), ("ours", 0.0))
    }
    judgement = compare_arms(arms, "base")
    assert [one.key for one in judgement.verdicts] == ["lm/ppl", "lm/word_ppl", "lm/agreement"]
    for metric in (0, 1):
        one = judgement.verdicts[metric]
        values = {name: np.mean([run.scores[metric].value for run in runs.values()]) for name, runs in arms.items()}
        assert one.verdict.difference == pytest.approx(values["base"] - values["ours"])
        assert (one.verdict.word, one.verdict.n) == ("better", 80)
        assert one.verdict.low > 0
    assert found(judgement, "ours", "lm/agreement").verdict.difference > 0


def test_an_archive_gives_the_verdict_of_its_runs_on_agreement(tmp_path):
    arms = {name: {("lm", 0): modeller(tmp_path / name, worse)} for name, worse in (("base", 0.1), ("ours", 0.0))}
    whole = found(compare_arms(arms, "base"), "ours", "lm/agreement").verdict
    for runs in arms.values():
        runs["lm", 0] = archived(runs["lm", 0])
    assert found(compare_arms(arms, "base"), "ours", "lm/agreement").verdict == whole
    assert whole.word == "better"


def archived(run):
    """A run of which an archive alone is left, which rounds."""
    columns = archive._read_answers(run.folder.predictions("validation"))
    kept = {name: archive._shortened(each) if each.dtype.kind == "f" else each for name, each in columns.items()}
    assert set(kept) == {"nll", "tokens", "teacher_nll", "agreed"}
    return replace(run, archived={"validation": kept})


@pytest.mark.parametrize(("kept", "other"), [("folders", {"turned": 1}), ("archive", {"teacher": 2.501})])
def test_agreement_with_other_language_models_is_not_compared(tmp_path, kept, other):
    """A folder tells teachers apart by one likeliest token, an archive by their likelihoods."""
    runs = {"a": modeller(tmp_path / "a"), "b": modeller(tmp_path / "b", **other)}
    arms = {name: {("lm", 0): archived(run) if kept == "archive" else run} for name, run in runs.items()}
    judgement = compare_arms(arms, "a")
    assert [one.key for one in judgement.verdicts] == ["lm/ppl", "lm/word_ppl"]
    assert any("had different teachers, no verdict on agreement" in note for note in judgement.notes)


def test_perplexities_over_different_tokens_have_no_verdict(tmp_path):
    arms = {"a": {("lm", 0): modeller(tmp_path / "a")}, "b": {("lm", 0): modeller(tmp_path / "b", shift=1)}}
    judgement = compare_arms(arms, "a")
    assert judgement.verdicts == ()
    assert any("were scored on different tokens, no verdict" in note for note in judgement.notes)


def test_a_task_of_perplexity_beside_one_of_accuracy_has_no_macro(tmp_path):
    arms = {
        name: {("lm", 0): modeller(tmp_path / f"{name}-lm", worse), **arm(tmp_path, name, ["sst2"], 0.8, [0])}
        for name, worse in (("a", 0.0), ("b", 0.1))
    }
    keys = [one.key for one in compare_arms(arms, "a").verdicts]
    assert "macro" not in keys
    assert "agreement" in keys
