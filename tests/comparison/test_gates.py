"""Gates on comparisons: what passes, what fails and why, and the exit code that a build sees."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdalign.comparison.compare import compare
from kdalign.comparison.gate_baseline import read_baseline
from kdalign.comparison.gates import check_gates
from kdalign.comparison.table import ScoredSplit
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import read_record
from support.records import run
from support.tiny import one_line

ROOT = Path(__file__).resolve().parents[2]


def compared(kdalign, path, *more):
    """Write a table of a run as a baseline."""
    status, _, err = kdalign("compare", path, "--format", "json", "--out", "baseline.json", *more)
    assert status == 0, err
    return "baseline.json"


def gate_lines(text):
    return [line for line in text.splitlines() if line.startswith(("pass: ", "FAIL: "))]


@pytest.fixture
def before(tmp_path):
    return run(tmp_path / "before" / "mine", "sst2", {"accuracy": 89.5}, {"accuracy": 92.0})


def test_a_drop_within_the_gate_passes_with_status_0(kdalign, tmp_path, before):
    file = compared(kdalign, before)
    now = run(tmp_path / "mine", "sst2", {"accuracy": 89.0}, {"accuracy": 92.0})
    status, out, err = kdalign("compare", now, "--baseline", file, "--max-drop", "accuracy=0.5")
    assert (status, err) == (0, "")
    assert gate_lines(out) == [
        "pass: mine: sst2/accuracy at most 0.5 points worse than the baseline; "
        "found 89.00 (88.0 to 90.0), before 89.50: 0.5 worse"
    ]


def test_a_drop_beyond_the_gate_fails_with_status_1(kdalign, tmp_path, before):
    file = compared(kdalign, before)
    now = run(tmp_path / "mine", "sst2", {"accuracy": 88.9}, {"accuracy": 92.0})
    status, out, err = kdalign("compare", now, "--baseline", file, "--max-drop", "sst2/accuracy=0.5,agreement=1")
    assert status == 1
    assert [line[:4] for line in gate_lines(out)] == ["FAIL", "pass"]
    assert "found 88.90 (87.9 to 89.9), before 89.50: 0.6 worse" in out
    assert "1 of 2 gates failed" in one_line(err)


def test_a_perplexity_that_rises_is_worse_and_one_that_falls_is_better(tmp_path):
    old = run(tmp_path / "old", "lm", {"ppl": 8.0, "word_ppl": 40.0})
    worse = run(tmp_path / "worse", "lm", {"ppl": 8.6, "word_ppl": 30.0})
    ppl, words = check_gates(compare([worse]), max_drop=["ppl=0.5", "word_ppl=0"], baseline=old)
    assert (ppl.passed, words.passed) == (False, True)
    assert ppl.found.endswith("before 8.00: 0.6 worse")
    assert words.found.endswith("before 40.00: 10 better")
    assert ppl.asked == "lm/ppl at most 0.5 worse than the baseline", "a perplexity has no unit"


def test_rounding_of_floating_point_numbers_fails_no_gate(tmp_path):
    old = run(tmp_path / "old", "sst2", {"accuracy": 80.3})
    now = run(tmp_path / "now", "sst2", {"accuracy": 80.1})
    assert 80.3 - 80.1 > 0.2
    [drop] = check_gates(compare([now]), max_drop=["accuracy=0.2"], baseline=old)
    assert drop.passed
    table = compare([run(tmp_path / "other", "sst2", {"accuracy": 100 * 0.29})])
    found = {gate: check_gates(table, [f"accuracy{gate}29"])[0].passed for gate in (">=", "=", "<=", "<", ">")}
    assert found == {">=": True, "=": True, "<=": True, "<": False, ">": False}


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ("retained>=90", True),
        ("retained >= 90.1", False),
        ("accuracy > 80", True),
        ("accuracy>81", False),
        ("sst2/accuracy<81.5", True),
        ("accuracy<=80.9", False),
        ("accuracy=81", True),
        ("steps<=5", True),
        ("parameters<1", False),
        ("accuracy>=81%", True),
    ],
)
def test_a_bound_is_held_against_the_value(tmp_path, gate, passed):
    table = compare([run(tmp_path / "mine", "sst2", {"accuracy": 81.0}, {"accuracy": 90.0})])
    [verdict] = check_gates(table, [gate])
    assert verdict.passed is passed
    assert verdict.row == "mine", "the teacher is not gated"


def test_every_gate_is_checked_and_said_whichever_fails(kdalign, tmp_path):
    runs = [
        run(tmp_path / name, "sst2", {"accuracy": value}, {"accuracy": 90.0}) for name, value in (("a", 80), ("b", 89))
    ]
    gates = ("--require", "retained>=97", "--require", "accuracy>=85")
    status, out, err = kdalign("compare", *runs, *gates)
    assert status == 1
    assert [line[:7] for line in gate_lines(out)] == ["FAIL: a", "pass: b", "FAIL: a", "pass: b"]
    assert "2 of 4 gates failed" in one_line(err)


def test_a_value_is_shown_so_exactly_that_its_side_of_the_bound_is_seen(tmp_path):
    table = compare([run(tmp_path / "a", "sst2", {"accuracy": 96.9996})])
    [verdict] = check_gates(table, ["accuracy>=97"])
    assert not verdict.passed
    assert verdict.found.startswith("found 96.9996 ")


def test_a_missing_value_fails_with_its_reason(kdalign, tmp_path):
    undefined = run(tmp_path / "a", "sst2", {"accuracy": None}, {"accuracy": 90.0})
    status, out, _ = kdalign("compare", undefined, "--require", "retained>=0")
    assert status == 1
    assert gate_lines(out) == ["FAIL: a: retained >= 0; no value (the student's score is undefined: nothing says why)"]
    alone = run(tmp_path / "b", "sst2", {"accuracy": 88.0})
    taught = run(tmp_path / "c", "sst2", {"accuracy": 88.0}, {"accuracy": 90.0})
    [first, second] = check_gates(compare([alone, taught]), ["agreement>=1"])
    assert (first.row, first.passed, first.found) == ("b", False, "no value (the row has none)")
    assert second.passed


def test_a_missing_value_fails_a_drop_on_either_side(tmp_path):
    defined = run(tmp_path / "a", "sst2", {"accuracy": 80.0})
    undefined = run(tmp_path / "b", "sst2", {"accuracy": None})
    for now, old, said in (
        (undefined, defined, "no value (nothing says why), before 80.00"),
        (defined, undefined, "the baseline has no value"),
    ):
        [verdict] = check_gates(compare([now]), max_drop=["accuracy=100"], baseline=old)
        assert not verdict.passed
        assert said in verdict.found


def test_single_rows_match_whatever_their_names_and_several_by_name(tmp_path):
    old = [run(tmp_path / "old" / name, "sst2", {"accuracy": 80.0}, temperature=n + 1) for n, name in enumerate("ab")]
    [verdict] = check_gates(
        compare([run(tmp_path / "other", "sst2", {"accuracy": 80.0})]), max_drop=["accuracy=0"], baseline=old[0]
    )
    assert verdict.passed
    now = [run(tmp_path / "now" / name, "sst2", {"accuracy": 79.0}, temperature=n + 1) for n, name in enumerate("bc")]
    first, second = check_gates(compare(now), max_drop=["accuracy=1"], baseline=tmp_path / "old")
    assert (first.row, first.passed, first.baseline) == ("b", True, 80.0)
    assert (second.row, second.passed) == ("c", False)
    assert "the baseline has no row 'c' (it has: a, b)" in second.found


def test_values_from_other_data_do_not_pass_for_a_drop(tmp_path):
    old = run(tmp_path / "old", "sst2", {"accuracy": 80.0}, fingerprint="ab")
    now = run(tmp_path / "now", "sst2", {"accuracy": 90.0}, fingerprint="cd")
    [verdict] = check_gates(compare([now]), max_drop=["accuracy=1"], baseline=old)
    assert not verdict.passed
    assert "the baseline was scored on other data: sst2: validation, n = 10 [abababab]" in verdict.found


def test_a_mean_over_more_or_fewer_tasks_does_not_pass_for_a_drop(tmp_path):
    def over(place, **tasks):
        group = tmp_path / place
        RunFolder(group).begin("teacher: t\n", {}, keep=False)
        for task, value in tasks.items():
            run(group / task, task, {"accuracy": value}, {"accuracy": 90.0})
        return group

    three = {"sst2": 80.0, "rte": 50.0, "mrpc": 70.0}
    before = over("before", **three)
    for place, tasks in (("fewer", ("sst2", "mrpc")), ("more", ("sst2", "rte", "mrpc", "qnli"))):
        now = compare([over(place, **{task: three.get(task, 95.0) for task in tasks})])
        (gate,) = check_gates(now, max_drop=["macro=0.5"], baseline=before)
        assert not gate.passed
        assert "other data" in gate.found
        (own,) = check_gates(now, max_drop=["sst2/accuracy=0.5"], baseline=before)
        assert own.passed, "a task's own column compares"
    assert check_gates(compare([before]), max_drop=["macro=0"], baseline=before)[0].passed


def test_a_bound_on_a_metric_that_a_row_with_the_task_lacks_fails(tmp_path):
    full = run(tmp_path / "full", "mrpc", {"accuracy": 70.0, "f1": 80.0})
    bare = run(tmp_path / "bare", "mrpc", {"accuracy": 70.0}, hard=0.5)
    gates = {gate.row: gate for gate in check_gates(compare([full, bare]), require=["f1>=0"])}
    assert (gates["full"].passed, gates["bare"].passed) == (True, False)
    assert "the row has none" in gates["bare"].found


def test_steps_to_a_score_may_be_gated(kdalign, tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 90.0})
    RunFolder(path).append_history({"kind": "evaluation", "step": 7, "accuracy": 88.0})
    words = ("compare", path, "--steps-to", "accuracy=85", "--metrics", "accuracy")
    for bound, status in ((500, 0), (6, 1)):
        assert kdalign(*words, "--require", f"steps-to/sst2/accuracy=85<={bound}")[0] == status


def test_rows_of_other_tasks_are_not_held_against_a_tasks_gate(tmp_path):
    one = run(tmp_path / "a", "sst2", {"accuracy": 90.0})
    other = run(tmp_path / "b", "lm", {"ppl": 8.0})
    assert [v.row for v in check_gates(compare([one, other]), ["accuracy>=80"])] == ["a"]


def evaluation(path, n=10, **results):
    """An evaluation's file: by model, its BLEU and its kind."""
    scored = [
        {
            "model": model, "task": "multi30k", "split": "test", "source": "m", "n": n, "kind": kind, "absent": [],
            "scores": [{"metric": "bleu", "value": value, "low": value - 1, "high": value + 1, "unit": "%", "n": n,
                        "higher_is_better": True, "signature": "hand"}],
        }
        for model, (value, kind) in results.items()
    ]  # fmt: skip
    path.write_text(json.dumps({"kind": "evaluation", "results": scored}))
    return path


def test_evaluated_models_are_gated_and_what_needs_no_model_is_not(tmp_path):
    file = evaluation(tmp_path / "e.json", mine=(36.0, "model"), copy=(0.5, "baseline"))
    [verdict] = check_gates(compare([file]), ["bleu>=30"])
    assert (verdict.row, verdict.passed) == ("mine (test)", True)
    lower = evaluation(tmp_path / "later.json", yours=(35.0, "model"), copy=(0.5, "baseline"))
    [verdict] = check_gates(compare([lower]), max_drop=["bleu=0.9"], baseline=file)
    assert (verdict.baseline, verdict.passed) == (36.0, False)


def test_an_evaluation_of_fewer_examples_does_not_pass_for_no_drop(tmp_path):
    before = evaluation(tmp_path / "e.json", n=872, mine=(36.0, "model"))
    now = evaluation(tmp_path / "now.json", n=50, mine=(36.0, "model"))
    [verdict] = check_gates(compare([now]), max_drop=["bleu=0.9"], baseline=before)
    assert not verdict.passed
    assert "the baseline was scored on other data: multi30k: test, n = 872" in verdict.found


def test_a_gate_with_no_row_to_look_at_fails(tmp_path):
    file = evaluation(tmp_path / "e.json", copy=(0.5, "baseline"))
    [verdict] = check_gates(compare([file]), ["bleu>=0"])
    assert not verdict.passed
    assert verdict.line == "FAIL: multi30k/bleu >= 0; no student and no evaluated model has this column"


def test_a_gate_on_what_was_not_profiled_names_the_flag(kdalign, tmp_path):
    path = run(tmp_path / "mine", "sst2", {"accuracy": 89.5}, {"accuracy": 92.0})
    record = read_record(path)
    bare = {who: replace(getattr(record, who), latency_ms=None) for who in ("student", "teacher")}
    RunFolder(path).write_record(replace(record, **bare))
    status, out, err = kdalign("compare", path, "--require", "speed-up>=1.5")
    assert (status, out) == (2, "")
    assert "no run has a value in column 'speed-up': they were made with --no-profile" in one_line(err)


def test_published_rows_are_not_gated(tmp_path):
    reference = tmp_path / "paper.yaml"
    reference.write_text("source: a paper\ntask: sst2\nrows: [{model: theirs, scores: {accuracy: 70}}]\n")
    table = compare([run(tmp_path / "mine", "sst2", {"accuracy": 90.0})], references=[reference])
    assert [row.kind for row in table.rows] == ["student", "reference"]
    assert [verdict.row for verdict in check_gates(table, ["accuracy>=80"])] == ["mine"]


@pytest.mark.parametrize("kind", ["table", "folder", "record", "evaluation"])
def test_a_baseline_is_a_table_a_run_a_record_or_an_evaluation(kdalign, tmp_path, before, kind):
    if kind == "evaluation":
        path = evaluation(tmp_path / "e.json", mine=(36.0, "model"))
        assert read_baseline(path).rows[0].cells["multi30k/bleu"].value == 36
        return
    path = {
        "table": lambda: compared(kdalign, before),
        "folder": lambda: before,
        "record": lambda: before / "record.json",
    }[kind]()
    now = run(tmp_path / "now", "sst2", {"accuracy": 80.0})
    status, out, _ = kdalign("compare", now, "--baseline", path, "--max-drop", "accuracy=1")
    assert status == 1
    assert "before 89.50: 9.5 worse" in out


def test_a_table_that_a_later_version_wrote_with_more_in_it_is_still_read(kdalign, tmp_path, before):
    tree = json.loads((tmp_path / compared(kdalign, before)).read_text())
    tree["columns"][0]["new"] = tree["rows"][0]["new"] = tree["new"] = 1
    tree["rows"][0]["cells"]["sst2/accuracy"]["new"] = 1
    (tmp_path / "later.json").write_text(json.dumps(tree))
    assert read_baseline(tmp_path / "later.json").rows[1].cells["sst2/accuracy"].value == 89.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--require", "retaned>=97"), "unknown column 'retaned'; did you mean 'retained'?"),
        (("--require", "retained"), "--require 'retained': give a column, one of >= > <= < ="),
        (("--require", "retained>=many"), "such as 'retained>=97'"),
        (("--require", "retained>=nan"), "such as 'retained>=97'"),
        (("--require", "80<=accuracy<=90"), "such as 'retained>=97'"),
        (("--baseline", "b.json", "--max-drop", "accuracy"), "such as accuracy=0.5"),
        (("--baseline", "b.json", "--max-drop", "accuracy=-1"), "0 or more"),
        (("--baseline", "b.json", "--max-drop", "accuracy=0.5,"), "such as accuracy=0.5"),
        (("--max-drop", "accuracy=1"), "--max-drop needs the earlier table: --baseline FILE"),
        (("--baseline", "b.json"), "--max-drop accuracy=0.5"),
        (("--baseline", "none.json", "--max-drop", "accuracy=1"), "--baseline: no run at "),
        (("--baseline", "b.json", "--max-drop", "accuracy=1"), "--baseline: 'b.json' is not JSON"),
        (("--baseline", "c.json", "--max-drop", "accuracy=1"), "is not a table that `kdalign compare"),
        (("--baseline", "d.json", "--max-drop", "accuracy=1"), "'ninety' is not a number"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_status_2_and_nothing_is_written(kdalign, tmp_path, before, more, said):
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text('{"columns": [1], "rows": []}')
    row = {"name": "a", "kind": "student", "seeds": [0], "cells": {"sst2/accuracy": {"value": "ninety"}}}
    (tmp_path / "d.json").write_text(json.dumps({"columns": [], "rows": [row]}))
    status, out, err = kdalign("compare", before, *more, "--out", "table.md", "--format", "markdown")
    assert (status, out) == (2, "")
    assert said in one_line(err)
    assert not (tmp_path / "table.md").exists()


def test_markdown_has_the_gates_below_the_table_and_json_in_its_object(kdalign, before):
    gates = ("--require", "accuracy>=80", "--require", "retained>=99")
    status, out, _ = kdalign("compare", before, *gates, "--format", "markdown")
    assert status == 1
    table, _, below = out.partition("\nGates:\n\n")
    assert table.startswith("| model |")
    assert [line[:13] for line in below.splitlines()] == ["- **pass**: m", "- **FAIL**: m"]
    status, out, _ = kdalign("compare", before, *gates, "--json")
    tree = json.loads(out)
    assert status == 1
    assert [gate["passed"] for gate in tree["gates"]] == [True, False]
    assert tree["gates"][0] | {"found": ""} == {
        "row": "mine", "column": "sst2/accuracy", "asked": "sst2/accuracy >= 80", "found": "", "passed": True,
        "value": 89.5, "low": 88.5, "high": 90.5, "baseline": None,
    }  # fmt: skip
    assert "gates" not in json.loads(kdalign("compare", before, "--json")[1])


def test_a_written_table_has_the_gates_and_they_are_said_on_stderr_too(kdalign, tmp_path, before):
    for form, name in (("markdown", "t.md"), ("rich", "t.txt"), ("json", "t.json")):
        status, out, err = kdalign("compare", before, "--require", "retained>=99", "--format", form, "--out", name)
        assert (status, out) == (1, "")
        assert [line[:4] for line in gate_lines(err)] == ["FAIL"]
        assert "retained >= 99" in (tmp_path / name).read_text()


def test_a_gate_may_be_on_a_column_that_is_not_shown(kdalign, before):
    status, out, _ = kdalign("compare", before, "--metrics", "accuracy", "--require", "retained>=97")
    assert status == 0
    assert "pass: mine: retained >= 97; found 97.28" in out


def test_a_table_says_in_its_json_what_data_it_was_scored_on(kdalign, tmp_path, before):
    tree = json.loads((tmp_path / compared(kdalign, before)).read_text())
    assert tree["protocols"] == [{"task": "sst2", "split": "validation", "n": 10, "fingerprint": "abababab"}]
    other = run(tmp_path / "other", "sst2", {"accuracy": 89.5}, fingerprint="cd")
    tree["notes"] = []
    (tmp_path / "baseline.json").write_text(json.dumps(tree))
    for path, passed in ((before, True), (other, False)):
        [verdict] = check_gates(compare([path]), max_drop=["accuracy=1"], baseline=tmp_path / "baseline.json")
        assert verdict.passed is passed, "footnotes are for people"


def test_tables_of_earlier_versions_say_it_in_their_footnotes(kdalign, tmp_path, before):
    baseline = read_baseline(ROOT / "examples" / "github-baseline.json")
    assert baseline.protocols == (ScoredSplit("data", "validation", 500, "d89704c6"),)
    files = {"run": before, "evaluation": evaluation(tmp_path / "e.json", n=1872, mine=(36.0, "model"))}
    for path in files.values():
        tree = json.loads((tmp_path / compared(kdalign, path)).read_text())
        del tree["protocols"]
        (tmp_path / "earlier.json").write_text(json.dumps(tree))
        assert list(map(str, read_baseline(tmp_path / "earlier.json").protocols)) == list(
            map(str, compare([path]).protocols)
        )
