"""Evaluations of runs in a comparison: columns of the runs' own rows, and paired tests on their texts."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from kdalign.comparison.compare import compare
from kdalign.errors import UsageError
from kdalign.metrics.text import score_texts
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import TokenPredictions, write_token_predictions
from kdalign.runs.record import read_record
from support.records import best, cell, run

N = 10
WANTED = [[f"the answer {row} is here"] for row in range(N)]


def answers(right):
    """Texts of which the first are their references, and the others have one word less."""
    return [known if row < right else known.rsplit(" ", 1)[0] for row, [known] in enumerate(WANTED)]


def trained(path, seed, **changes):
    """A run of a language model with its predictions."""
    made = run(path, "lm", {"ppl": 5.0}, {"ppl": 4.0}, seed=seed, **changes)
    tokens = np.full(N, 3)
    said = TokenPredictions(tokens * np.log(5.0), tokens, np.zeros(3 * N, dtype=int))
    write_token_predictions(RunFolder(made).predictions("validation"), said, said)
    return made


def evaluated(path, texts, metrics=("exact_match", "chrf"), **changes):
    """A result of ``kdalign eval``, with its texts in ``scores/`` beside the file of all results."""
    scores, _ = score_texts(metrics, texts, WANTED)
    folder = path.parent / "scores"
    folder.mkdir(exist_ok=True)
    pd.DataFrame({"prediction": texts, "references": WANTED}).to_parquet(folder / f"{path.name}-texts.parquet")
    return {
        "model": str(path), "task": "lm", "split": "validation", "source": "d", "n": N, "absent": [],
        "scores": [asdict(score) for score in scores], "texts": f"/elsewhere/{path.name}-texts.parquet",
        "run": read_record(path).identity, "examples": "abababab", "notes": [f"{path} writes: greedily"], **changes,
    }  # fmt: skip


def kept(tmp_path, results):
    (tmp_path / "scores.json").write_text(json.dumps({"kind": "evaluation", "results": results}))
    return [tmp_path, tmp_path / "scores.json"]


@pytest.fixture
def runs(tmp_path):
    """Two seeds of two recipes, with right texts by name."""
    right = {"plain-0": 1, "plain-1": 3, "better-0": 9, "better-1": 10}
    for name in right:
        trained(tmp_path / name, int(name[-1]), alpha=0.5 if "better" in name else 0.7)
    return {tmp_path / name: answers(count) for name, count in right.items()}


def test_scores_of_texts_are_columns_of_the_runs_and_tested_by_example_and_seed(tmp_path, runs):
    table = compare(kept(tmp_path, [evaluated(*item) for item in runs.items()]), against="plain")
    assert [row.name for row in table.rows] == ["teacher t", "better", "plain", "better − plain"]
    # exact match: 10 and 30 of 100, against 90 and 100
    assert cell(table, "plain", "lm/exact_match").value == pytest.approx(20)
    assert cell(table, "better", "lm/exact_match").value == pytest.approx(95)
    assert best(table, "lm/exact_match") == ["better"]
    assert cell(table, "better − plain", "lm/exact_match").value == pytest.approx(75)
    judged = {(one["key"], one["verdict"]["word"], one["seeds"]) for one in table.judged}
    assert ("lm/exact_match", "better", (0, 1)) in judged
    assert ("lm/chrf", "better", (0, 1)) in judged
    assert ("lm/ppl", "no evidence", (0, 1)) in judged
    [written] = [note for note in table.notes if "greedily" in note]
    assert all(str(path) in written for path in runs)
    assert "write: greedily" in written
    assert "evaluations are never marked best" not in table.notes
    # What is retained and what stands for the task stay the run's own.
    assert cell(table, "better", "retained").value == pytest.approx(80)


def test_a_difference_of_one_seed_is_that_of_its_texts(tmp_path, runs):
    only = {path: texts for path, texts in runs.items() if path.name.endswith("0")}
    results = [evaluated(*item) for item in only.items()]
    table = compare([*only, kept(tmp_path, results)[1]], against="plain-0")
    [verdict] = [one["verdict"] for one in table.judged if one["key"] == "lm/exact_match"]
    assert verdict["difference"] == pytest.approx(80)  # 9 of 10 against 1 of 10
    # All 8 texts that differ do so in one direction: by chance 2 of 2^8 ways of swapping them are as far apart.
    assert verdict["p"] == pytest.approx(2 / 2**8, abs=0.004)


@pytest.mark.parametrize("changes", [{"examples": "another"}, {"split": "test"}, {"run": "another"}, {"run": ""}])
def test_an_evaluation_of_other_examples_or_of_no_run_is_a_row_of_its_own(tmp_path, runs, changes):
    path, texts = next(iter(runs.items()))
    table = compare(kept(tmp_path, [evaluated(path, texts, **changes)]))
    row = f"plain-0 ({changes.get('split', 'validation')})"
    assert cell(table, row, "lm/exact_match").value == pytest.approx(10)
    assert all("lm/exact_match" not in row.cells for row in table.rows if row.kind == "student")
    assert "evaluations are never marked best" in table.notes


def test_a_second_evaluation_with_another_value_is_a_row_of_its_own(tmp_path, runs):
    path, texts = next(iter(runs.items()))
    again = evaluated(path, texts, ("chrf", "rougeL"))
    other = evaluated(path, answers(7), ("chrf",), notes=[f"{path} writes: by beams"])
    table = compare([path, kept(tmp_path, [evaluated(path, texts), again, other])[1]])
    assert {"lm/exact_match", "lm/rougeL", "lm/chrf"} <= {column.key for column in table.columns}
    assert cell(table, "plain-0", "lm/rougeL").value == again["scores"][1]["value"]
    assert cell(table, "plain-0 (validation)", "lm/chrf").value > cell(table, "plain-0", "lm/chrf").value


def test_a_seed_without_an_evaluation_leaves_a_dash_and_no_verdict(tmp_path, runs):
    results = [evaluated(*item) for item in runs.items() if item[0].name != "better-1"]
    table = compare(kept(tmp_path, results), against="plain")
    found = cell(table, "better", "lm/exact_match")
    assert (found.value, found.reason) == (None, "seed 1: it has none")
    assert "lm/exact_match: not all runs have it, no verdict" in table.notes
    assert cell(table, "better", "lm/ppl").verdict


def test_texts_that_are_gone_give_no_verdict_and_changed_ones_are_refused(tmp_path, runs):
    paths = kept(tmp_path, [evaluated(*item, ("exact_match",)) for item in runs.items()])
    file = tmp_path / "scores/plain-0-texts.parquet"
    table = pd.read_parquet(file)
    table.assign(prediction=answers(4)).to_parquet(file)
    with pytest.raises(UsageError, match="have exact_match 40, and their evaluation 10"):
        compare(paths, against="plain")
    table.assign(prediction=range(N)).to_parquet(file)
    with pytest.raises(UsageError, match="no text"):
        compare(paths, against="plain")
    table.drop(columns="references").to_parquet(file)
    with pytest.raises(UsageError, match="no generated texts"):
        compare(paths, against="plain")
    file.unlink()
    [note] = [note for note in compare(paths, against="plain").notes if "is not there" in note]
    assert str(file) in note


def test_scores_that_were_computed_in_two_ways_are_not_ranked_nor_tested(tmp_path, runs):
    results = [evaluated(*item, ("chrf",)) for item in runs.items()]
    for result in results[:2]:
        result["scores"][0]["signature"] = "an older version"
    table = compare(kept(tmp_path, results), against="plain")
    assert best(table, "lm/chrf") == []
    assert "lm/chrf: computed in different ways, no verdict" in table.notes
    results = [evaluated(*item, ("chrf",)) for item in runs.items()]
    results[0]["notes"] = [f"{results[0]['model']} writes: by beams"]
    assert best(compare(kept(tmp_path, results)), "lm/chrf") == []


def test_metrics_that_no_text_has_alone_are_not_tested(tmp_path, runs):
    results = [evaluated(*item, ("distinct1",)) for item in runs.items()]
    table = compare(kept(tmp_path, results), against="plain")
    assert "distinct1 is of a whole corpus, which is not resampled, no verdict" in table.notes
    for result in results:
        result["scores"][0]["metric"] = "mine"
    assert any(
        "mine of run" in note and "no verdict" in note
        for note in compare(kept(tmp_path, results), against="plain").notes
    )


def test_a_baseline_may_be_named_by_one_of_its_runs(tmp_path, runs):
    paths = kept(tmp_path, [evaluated(*item) for item in runs.items()])
    assert compare(paths, against="plain-1") == compare(paths, against="plain")
