"""Texts of evaluated runs in a comparison: columns of the runs' own rows, and paired tests."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from kdalign.comparison.compare import compare
from kdalign.comparison.gates import check_gates
from kdalign.errors import UsageError
from kdalign.metrics.text import score_texts
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import TokenPredictions, write_token_predictions
from kdalign.runs.record import read_record
from support.records import best, cell, run, scores

N = 10
WANTED = [[f"the answer {row} is here"] for row in range(N)]


def answers(right):
    """Texts of which the first are their references, and the others have one word less."""
    return [known if row < right else known.rsplit(" ", 1)[0] for row, [known] in enumerate(WANTED)]


def trained(path, seed, tokens=3, **changes):
    """A run of a language model with its predictions."""
    made = run(path, "lm", {"ppl": 5.0}, {"ppl": 4.0}, seed=seed, **changes)
    keep_predictions(made, tokens)
    return made


def keep_predictions(path, each):
    tokens = np.full(N, each)
    said = TokenPredictions(tokens * np.log(5.0), tokens, np.zeros(each * N, dtype=int))
    write_token_predictions(RunFolder(path).predictions("validation"), said, said)


def evaluated(path, texts, metrics=("exact_match", "chrf"), language="", **changes):
    """A result of ``kdalign eval``, with its texts in ``texts/`` beside ``texts.json``."""
    found, _ = score_texts(metrics, texts, WANTED, language)
    folder = path.parent / "texts"
    folder.mkdir(exist_ok=True)
    pd.DataFrame({"prediction": texts, "references": WANTED}).to_parquet(folder / f"{path.name}-texts.parquet")
    return {
        "model": str(path), "task": "lm", "split": "validation", "source": "d", "n": N, "absent": [],
        "scores": [asdict(score) for score in found], "texts": f"elsewhere/texts/{path.name}-texts.parquet",
        "run": read_record(path).identity, "examples": "abababab", "language": language, "writing": "greedily",
        "notes": [f"{path} writes: greedily"], **changes,
    }  # fmt: skip


def kept(tmp_path, results, name="texts.json"):
    (tmp_path / name).write_text(json.dumps({"kind": "evaluation", "results": results}))
    return [*(path for path in sorted(tmp_path.iterdir()) if path.name[-1] in "01"), tmp_path / name]


def word_of(table, key):
    return [one["verdict"]["word"] for one in table.judged if one["key"] == key]


@pytest.fixture
def runs(tmp_path):
    """Two seeds of two recipes, with texts of which some are right."""
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
    assert cell(table, "better", "lm/exact_match").high == 100
    assert best(table, "lm/exact_match") == ["better"]
    assert cell(table, "better − plain", "lm/exact_match").value == pytest.approx(75)
    assert {key: word_of(table, f"lm/{key}") for key in ("exact_match", "chrf", "ppl")} == {
        "exact_match": ["better"], "chrf": ["better"], "ppl": ["no evidence"],
    }  # fmt: skip
    assert [note for note in table.notes if "greedily" in note] == ["lm, texts: greedily"]
    assert "evaluations are never marked best" not in table.notes
    # What is retained stays the run's own.
    assert cell(table, "better", "retained").value == pytest.approx(80)


def test_a_difference_of_one_seed_is_that_of_its_texts(tmp_path, runs):
    only = {path: texts for path, texts in runs.items() if path.name.endswith("0")}
    file = kept(tmp_path, [evaluated(*item, ("exact_match", "wer")) for item in only.items()])[-1]
    table = compare([*only, file], against="plain-0")
    verdicts = {one["key"]: one["verdict"] for one in table.judged}
    assert verdicts["lm/exact_match"]["difference"] == pytest.approx(80)  # 9 of 10 against 1 of 10
    # All 8 texts that differ do so in one direction: by chance 2 of 2^8 ways of swapping them are as far apart.
    assert verdicts["lm/exact_match"]["p"] == pytest.approx(2 / 2**8, abs=0.004)
    # 1 and 9 words of 50 are missing; fewer errors are better.
    assert verdicts["lm/wer"]["difference"] == pytest.approx(100 * 8 / 50)


@pytest.mark.parametrize(
    "changes", [{"examples": "another"}, {"split": "test"}, {"run": "another"}, {"run": ""}, {"writing": ""}]
)
def test_an_evaluation_of_other_examples_or_of_no_run_is_a_row_of_its_own(tmp_path, runs, changes):
    path, texts = next(iter(runs.items()))
    table = compare(kept(tmp_path, [evaluated(path, texts, **changes)]))
    row = f"plain-0 ({changes.get('split', 'validation')})"
    assert cell(table, row, "lm/exact_match").value == pytest.approx(10)
    assert all("lm/exact_match" not in row.cells for row in table.rows if row.kind == "student")
    assert "evaluations are never marked best" in table.notes


def test_what_a_run_was_scored_by_itself_stays_a_row_of_the_evaluation(tmp_path, runs):
    path, texts = next(iter(runs.items()))
    result = evaluated(path, texts, ("chrf",))
    [other] = scores(ppl=50.0)
    result["scores"].append(other)
    table = compare([path, kept(tmp_path, [result])[-1]])
    assert cell(table, "plain-0", "lm/ppl").value == 5
    assert cell(table, "plain-0 (validation)", "lm/ppl").value == 50
    assert "lm/chrf" not in next(row for row in table.rows if row.kind == "evaluation").cells
    gates = check_gates(table, ["ppl<=40"])
    assert sorted(gate.passed for gate in gates) == [False, True]


@pytest.mark.parametrize("changes", [{"writing": "by beams"}, {"language": "de"}])
def test_texts_that_were_written_in_another_way_are_not_averaged_with_the_first(tmp_path, runs, changes):
    results = [evaluated(*item, ("chrf",)) for item in runs.items()]
    results[1] |= changes
    table = compare(kept(tmp_path, results), against="plain")
    assert cell(table, "plain", "lm/chrf").value is None
    assert cell(table, "plain", "lm/chrf").reason == "seed 1: it has none"
    assert cell(table, "plain-1 (validation)", "lm/chrf").value == pytest.approx(results[1]["scores"][0]["value"])
    assert "lm/chrf: not all runs have it, no verdict" in table.notes
    assert word_of(table, "lm/ppl") == ["no evidence"]


def test_a_second_evaluation_adds_metrics_and_another_value_is_a_row_of_its_own(tmp_path, runs):
    path, texts = next(iter(runs.items()))
    again = evaluated(path, texts, ("chrf", "rougeL"))
    other = evaluated(path, answers(7), ("chrf",))
    evaluated(path, texts)
    table = compare([path, kept(tmp_path, [evaluated(path, texts), again, other])[-1]])
    assert cell(table, "plain-0", "lm/exact_match").value == 10
    assert cell(table, "plain-0", "lm/rougeL").value == again["scores"][1]["value"]
    assert cell(table, "plain-0 (validation)", "lm/chrf").value > cell(table, "plain-0", "lm/chrf").value


def test_composed_letters_of_one_text_change_nothing(tmp_path, runs):
    results = [evaluated(path, [f"cafe\u0301 {texts[0]}", *texts[1:]], ("chrf",)) for path, texts in runs.items()]
    results[1:] = [evaluated(*item, ("chrf",)) for item in list(runs.items())[1:]]
    assert results[0]["scores"][0]["signature"] != results[1]["scores"][0]["signature"]
    assert word_of(compare(kept(tmp_path, results), against="plain"), "lm/chrf") == ["better"]


def test_texts_are_counted_in_their_language(tmp_path, runs):
    results = [evaluated(*item, ("bleu",), "zh") for item in runs.items()]
    assert "zh" in results[0]["scores"][0]["signature"]
    assert word_of(compare(kept(tmp_path, results), against="plain"), "lm/bleu") == ["better"]


def test_texts_are_compared_whatever_the_tokenizers(tmp_path, runs):
    for path in runs:
        if "plain" in path.name:
            keep_predictions(path, 4)
    table = compare(kept(tmp_path, [evaluated(*item) for item in runs.items()]), against="plain")
    assert word_of(table, "lm/chrf") == ["better"]
    assert word_of(table, "lm/ppl") == []


@pytest.mark.parametrize("lacking", ["better-0", "better-1", "plain-0"])
def test_a_seed_without_an_evaluation_leaves_a_dash_and_no_verdict(tmp_path, runs, lacking):
    results = [evaluated(*item) for item in runs.items() if item[0].name != lacking]
    table = compare(kept(tmp_path, results), against="plain")
    found = cell(table, lacking[:-2], "lm/exact_match")
    assert (found.value, found.reason) == (None, f"seed {lacking[-1]}: it has none")
    assert "lm/exact_match: not all runs have it, no verdict" in table.notes
    assert cell(table, "better", "lm/ppl").verdict


def test_a_metric_that_could_not_be_computed_is_a_dash_with_its_reason(tmp_path, runs):
    path, texts = next(iter(runs.items()))
    absent = [
        {"metric": "bleu", "reason": "no words", "command": ""},
        {"metric": "agreement", "reason": "none", "command": ""},
    ]
    table = compare([path, kept(tmp_path, [evaluated(path, texts, ("chrf",), absent=absent)])[-1]])
    assert cell(table, "plain-0", "lm/bleu").reason == "no words"
    assert "lm/agreement" not in cell_keys(table)


def cell_keys(table):
    return {key for row in table.rows for key in row.cells}


def test_a_dash_is_in_a_note_of_its_own_row_with_its_own_reason(tmp_path, runs):
    """A teacher without texts was not evaluated; it is not one whose answers have no scores."""
    teacher = evaluated(next(iter(runs)), answers(5), ("chrf",), model="./t", run="")
    files = kept(tmp_path, [teacher, *(evaluated(*item, ("chrf",)) for item in runs.items())])
    notes = [note for note in compare(files, ["chrf", "agreement"]).notes if note.startswith("–")]
    assert notes == [
        "– in lm chrf of teacher t: it was not measured",
        "– in agreement of teacher t: a teacher is not compared with itself",
        "– in agreement of t (validation): it was not measured",
    ]


def test_an_undefined_score_has_no_verdict(tmp_path, runs):
    results = [evaluated(*item, ("chrf",)) for item in runs.items()]
    results[0]["scores"][0] |= {"value": None, "reason": "no words"}
    table = compare(kept(tmp_path, results), against="plain")
    assert cell(table, "plain", "lm/chrf").reason == "seed 0: no words"
    assert "lm/chrf: undefined for a run (no words), no verdict" in table.notes


def test_texts_that_are_gone_give_no_verdict_and_changed_ones_are_refused(tmp_path, runs):
    paths = kept(tmp_path, [evaluated(*item, ("exact_match",)) for item in runs.items()])
    file = tmp_path / "texts/plain-0-texts.parquet"
    table = pd.read_parquet(file)
    for changed, said in (
        (table.assign(prediction=answers(4)), "have exact_match 40, and their evaluation 10"),
        (table.iloc[[1, 0, *range(2, N)]], "plain"),  # of other examples than the other arm
        (table.assign(prediction=range(N)), "row 0: it holds no prediction with a list of references"),
        (table.assign(references="the answer"), "row 0: it holds no prediction with a list of references"),
        (table.drop(columns="references"), "no generated texts"),
    ):
        changed.to_parquet(file)
        with pytest.raises(UsageError, match=said):
            compare(paths, against="plain")
    file.unlink()
    table = compare(paths, against="plain")
    assert cell(table, "plain", "lm/exact_match").value == pytest.approx(20)
    assert any("lm/exact_match" in note and "its texts are not beside their evaluation" in note for note in table.notes)


def test_an_evaluation_may_be_renamed_beside_its_texts(tmp_path, runs):
    paths = kept(tmp_path, [evaluated(*item) for item in runs.items()], "other.json")
    assert word_of(compare(paths, against="plain"), "lm/chrf") == ["better"]


def test_scores_of_another_version_are_shown_and_not_tested(tmp_path, runs):
    results = [evaluated(*item, ("chrf",)) for item in runs.items()]
    for result in results:
        result["scores"][0]["signature"] = "an older version"
    table = compare(kept(tmp_path, results), against="plain")
    assert cell(table, "better", "lm/chrf").best
    assert word_of(table, "lm/chrf") == []
    assert any("scored by an older version, here it would be" in note for note in table.notes)


def test_a_metric_of_a_whole_corpus_is_not_tested(tmp_path, runs):
    table = compare(kept(tmp_path, [evaluated(*item, ("distinct1",)) for item in runs.items()]), against="plain")
    assert any(note.startswith("lm/distinct1: it is of a whole corpus") for note in table.notes)


def test_a_copy_of_a_run_has_its_texts_too(tmp_path, runs):
    path, texts = next(iter(runs.items()))
    shutil.copytree(path, tmp_path / "copy-0")
    table = compare([path, tmp_path / "copy-0", kept(tmp_path, [evaluated(path, texts)])[-1]])
    assert cell(table, "plain-0", "lm/chrf").value == cell(table, "copy-0", "lm/chrf").value


def test_a_baseline_may_be_named_by_one_of_its_runs_if_it_is_one_rows(tmp_path, runs):
    paths = kept(tmp_path, [evaluated(*item) for item in runs.items()])
    assert compare(paths, against="plain-1") == compare(paths, against="plain")
    for folder, names in {"x": ("ab-1", "ab-2"), "y": ("ab-1", "a-2")}.items():
        for number, name in enumerate(names):
            trained(tmp_path / folder / name, number, alpha=0.5 if folder == "x" else 0.7)
    with pytest.raises(UsageError, match="'ab-1'"):
        compare([*(tmp_path / "x").iterdir(), *(tmp_path / "y").iterdir()], against="ab-1")
