"""One table from records: what is averaged, what is best, and what does not rank."""

import json
from dataclasses import replace

import pytest

from kdalign.comparison.compare import compare
from kdalign.errors import UsageError
from kdalign.report.formats import comparison_as
from kdalign.report.layout import table_layouts
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import RunRecord, read_record
from support.records import best, calibrated, cell, evaluation, run, scores


def test_seeds_become_a_row_with_a_t_interval_over_them(tmp_path):
    runs = [run(tmp_path / f"arm-{n}", "sst2", {"accuracy": 80.0 + n}, {"accuracy": 90.0}, seed=n) for n in (0, 1, 2)]
    table = compare(runs)
    found = cell(table, "arm", "sst2/accuracy")
    # mean 81, standard deviation 1, t(0.975, 2) = 4.3027: half the interval is 4.3027 / sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((81, 81 - 2.4842, 81 + 2.4842), abs=1e-4)
    assert cell(table, "arm", "retained").value == pytest.approx(90)
    assert [row.kind for row in table.rows] == ["teacher", "student"]


def test_what_is_retained_of_a_perplexity_is_the_teachers_over_the_students(tmp_path):
    table = compare([run(tmp_path / "a", "lm", {"ppl": 8.0, "word_ppl": 40.0}, {"ppl": 6.0, "word_ppl": 30.0})])
    assert cell(table, "a", "retained").value == pytest.approx(75)


def test_a_row_over_tasks_has_the_mean_of_each_and_over_all(tmp_path):
    group = tmp_path / "both"
    RunFolder(group).begin("teacher: t\n", {}, keep=False)
    run(group / "mrpc", "mrpc", {"accuracy": 70.0, "f1": 80.0}, {"accuracy": 90.0, "f1": 90.0})
    run(group / "sst2", "sst2", {"accuracy": 85.0}, {"accuracy": 90.0})
    table = compare([group])
    assert cell(table, "both", "mrpc").value == 75
    assert cell(table, "both", "macro").value == 80
    assert cell(table, "both", "retained").value == pytest.approx(100 * 80 / 90)
    assert [column.key for column in table.columns if column.detail] == ["mrpc/accuracy", "mrpc/f1"]


def test_retained_costs_and_agreement_of_a_row_over_tasks_are_of_all_of_them(tmp_path):
    group = tmp_path / "both"
    RunFolder(group).begin("teacher: t\n", {}, keep=False)
    run(group / "mrpc", "mrpc", {"accuracy": 70.0}, {"accuracy": 90.0})
    second = run(group / "sst2", "sst2", {"accuracy": 90.0}, {"accuracy": 60.0})
    table = compare([group])
    assert cell(table, "both", "retained").value == pytest.approx(100 * 80 / 75), "each task has its own teacher"
    assert cell(table, "both", "speed-up").value == pytest.approx(1.5), "3 ms by 2 ms"
    record = read_record(second)
    told = {**record.scores["validation"], "agreement": {**record.scores["validation"]["agreement"], "value": None}}
    larger = replace(record.student, parameters=7_000_000)
    RunFolder(second).write_record(replace(record, student=larger, scores={"validation": told}))
    table = compare([group])
    found = cell(table, "both", "agreement")
    assert (found.value, found.reason) == (None, "sst2 is undefined: nothing says why"), "no mean of the others"
    assert cell(table, "both", "parameters").value == 1, "the first task's"


def test_agreement_that_is_a_correlation_is_said(tmp_path):
    path = run(tmp_path / "a", "stsb", {"accuracy": 70.0}, {"accuracy": 90.0})
    note = "agreement on stsb: Pearson's correlation with the teacher's scores"
    assert note not in compare([path]).notes
    record = read_record(path)
    record.scores["validation"]["agreement"]["signature"] = "scipy 1"
    RunFolder(path).write_record(record)
    assert note in compare([path]).notes


def test_a_row_over_accuracy_and_perplexity_has_no_mean(tmp_path):
    group = tmp_path / "both"
    RunFolder(group).begin("teacher: t\n", {}, keep=False)
    run(group / "sst2", "sst2", {"accuracy": 85.0}, {"accuracy": 90.0})
    run(group / "lm", "lm", {"ppl": 8.0, "word_ppl": 40.0}, {"ppl": 6.0, "word_ppl": 30.0})
    table = compare([group])
    assert not {"macro", "lm"} & {column.key for column in table.columns}
    assert cell(table, "both", "retained").value is None
    assert any("the tasks have no mean" in note for note in table.notes)


@pytest.fixture
def mixed(tmp_path):
    """Two runs on tokens, one on classes of two metrics."""
    return [
        run(tmp_path / "good", "lm", {"ppl": 8.0, "word_ppl": 4000.0}, {"ppl": 6.0, "word_ppl": 3000.0}),
        run(tmp_path / "poor", "lm", {"ppl": 12.0, "word_ppl": 6000.0}),
        run(tmp_path / "pairs", "mrpc", {"accuracy": 70.0, "f1": 80.0}, {"accuracy": 90.0, "f1": 90.0}),
    ]


def test_rows_of_different_tasks_keep_every_score_and_do_not_rank(mixed):
    table = compare(mixed)
    keys = [column.key for column in table.columns]
    assert keys[:6] == ["lm/ppl", "lm/word_ppl", "mrpc/accuracy", "mrpc/f1", "agreement", "retained"]
    assert not any(column.detail for column in table.columns)
    assert best(table, "lm/ppl") == ["good"]
    assert best(table, "mrpc/f1") == [], "one row alone is not the best of anything"
    assert best(table, "agreement") == best(table, "retained") == []
    assert any(note.startswith("agreement, retained: over each row's own tasks") for note in table.notes)


def test_scores_of_different_tasks_are_tables_of_their_own(mixed):
    lines = str(comparison_as(compare(mixed), "markdown")).splitlines()
    tables = "\n".join(lines).split("\n\n")
    assert [table.splitlines()[0].split(" | ")[1] for table in tables[:2]] == ["lm ppl", "mrpc accuracy (%)"]
    assert [row.split(" | ")[0] for row in tables[0].splitlines()[2:]] == ["| teacher t", "| good", "| poor"]
    assert "pairs" in tables[1]
    assert "**4,000** (3,999 to 4,001)" in tables[0], "a perplexity of thousands needs no decimals"


def test_rows_scored_on_different_data_have_no_best(tmp_path):
    runs = [run(tmp_path / name, "sst2", {"accuracy": value}, fingerprint=name) for name, value in (("a", 1), ("b", 2))]
    table = compare(runs)
    assert best(table, "sst2/accuracy") == []
    assert any("do not rank them" in note for note in table.notes)


def test_a_metric_names_its_columns_alone_where_that_says_which(mixed):
    assert [column.key for column in compare(mixed, ["ppl", "mrpc/f1"]).columns] == ["lm/ppl", "mrpc/f1"]
    assert [row.name for row in compare(mixed, sort="ppl").rows][:2] == ["teacher t", "good"]
    with pytest.raises(UsageError, match="did you mean 'lm/ppl'"):
        compare(mixed, sort="lm/pp")


def test_a_metric_of_two_tasks_does_not_say_what_to_sort_by(tmp_path):
    runs = [run(tmp_path / task, task, {"accuracy": 1.0}) for task in ("sst2", "mrpc")]
    assert len(compare(runs, ["accuracy"]).columns) == 2
    with pytest.raises(UsageError, match=r"which one\? \(accepted: sst2/accuracy, mrpc/accuracy\)"):
        compare(runs, sort="accuracy")


def test_json_holds_the_table_and_its_notes(mixed):
    tree = json.loads(str(comparison_as(compare(mixed), "json")))
    assert [row["name"] for row in tree["rows"]] == ["teacher t", "teacher t", "good", "poor", "pairs"]
    assert tree["notes"]


def test_a_slash_in_a_tasks_name_hides_nothing(tmp_path):
    runs = [run(tmp_path / n, "org/x", {"accuracy": 70.0 + k}, fingerprint=n) for k, n in enumerate("ab")]
    assert best(compare(runs), "org/x/accuracy") == [], "other data"
    again = [run(tmp_path / f"again-{n}", "org/x", {"accuracy": 70.0 + k}) for k, n in enumerate("ab")]
    assert best(compare(again), "org/x/accuracy") == ["again-b"]
    assert [column.key for column in compare(again, ["accuracy"]).columns] == ["org/x/accuracy"]


def test_a_single_run_beside_a_row_over_tasks_has_its_mean_too(tmp_path):
    group = tmp_path / "both"
    RunFolder(group).begin("teacher: t\n", {}, keep=False)
    run(group / "mrpc", "mrpc", {"accuracy": 70.0, "f1": 80.0})
    run(group / "sst2", "sst2", {"accuracy": 85.0})
    table = compare([group, run(tmp_path / "one", "mrpc", {"accuracy": 60.0, "f1": 70.0})])
    assert cell(table, "one", "mrpc").value == 65
    [title] = [line for line in str(comparison_as(table, "markdown")).splitlines() if line.startswith("| model | mrpc")]
    assert title.startswith("| model | mrpc accuracy (%) | mrpc f1 (%) | sst2 accuracy (%) | mrpc mean (%) | macro (%)")


def test_a_row_over_tasks_is_not_torn_apart_by_a_row_of_none(tmp_path):
    group = tmp_path / "both"
    RunFolder(group).begin("teacher: t\n", {}, keep=False)
    run(group / "mrpc", "mrpc", {"accuracy": 70.0})
    run(group / "sst2", "sst2", {"accuracy": 85.0})
    other = run(tmp_path / "other", "cola", {"accuracy": 60.0}, {"accuracy": 70.0})
    table = compare([group, other], ["sst2/accuracy", "mrpc/accuracy", "retained"])
    first = str(comparison_as(table, "markdown")).split("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in first[2:]] == ["| teacher t", "| both", "| other"]
    assert first[0].endswith("| retained (%) |")


def test_a_seed_that_lacks_a_metric_leaves_a_dash_with_the_reason_in_any_order(tmp_path):
    runs = [run(tmp_path / "arm-0", "mrpc", {"accuracy": 70.0}, seed=0)]
    runs += [run(tmp_path / f"arm-{n}", "mrpc", {"accuracy": 70.0, "f1": 80.0}, seed=n) for n in (1, 2)]
    for order in (runs, runs[::-1]):
        found = cell(compare(order), "arm", "mrpc/f1")
        assert (found.value, found.reason) == (None, "seed 0: it has none")


def test_what_is_retained_of_different_teachers_does_not_rank(tmp_path):
    runs = []
    for name, theirs, ours in (("a", 90.0, 70.0), ("b", 99.0, 75.0)):
        runs.append(run(tmp_path / name, "sst2", {"accuracy": ours}, {"accuracy": theirs}))
        record = read_record(runs[-1])
        RunFolder(runs[-1]).write_record(replace(record, teacher=replace(record.teacher, revision=name)))
    table = compare(runs)
    assert best(table, "sst2/accuracy") == ["b"]
    assert best(table, "retained") == []
    assert any("rows of different teachers" in note for note in table.notes)


def test_a_metric_that_the_first_model_lacks_is_sorted_in_its_own_direction(tmp_path):
    absent = [{"metric": "ppl", "reason": "no head", "command": ""}]
    files = [evaluation(tmp_path / "none.json", [], absent)]
    files += [evaluation(tmp_path / f"{value:.0f}.json", scores(ppl=value)) for value in (30.0, 10.0)]
    names = [row.name for row in compare(files, sort="ppl").rows]
    assert names == ["10 (validation)", "30 (validation)", "none (validation)"]


def test_a_file_without_results_is_no_evaluation(tmp_path):
    (tmp_path / "x.json").write_text('{"kind": "evaluation"}')
    with pytest.raises(UsageError, match="neither a run nor an evaluation"):
        compare([tmp_path / "x.json"])


def test_calibration_is_a_column_of_its_own_better_when_lower_and_no_part_of_a_mean(tmp_path):
    for arm, error in (("a", 3.0), ("b", 7.0)):
        (tmp_path / arm).mkdir()
        first = run(
            tmp_path / arm / "mrpc", "mrpc", {"f1": 80.0}, {"f1": 90.0}, calibration=calibrated(error, 2.0), beta=error
        )
        run(
            tmp_path / arm / "sst2",
            "sst2",
            {"accuracy": 70.0},
            {"accuracy": 90.0},
            calibration=calibrated(error + 2, 4.0),
            beta=error,
        )
        (tmp_path / arm / "recipe.yaml").write_text((first / "recipe.yaml").read_text())
    table = compare([tmp_path / "a", tmp_path / "b"])
    assert (cell(table, "a", "ece").value, cell(table, "b", "ece").value) == (4.0, 8.0)
    assert cell(table, "teacher t", "ece").value == 3.0
    assert best(table, "ece") == ["a"]
    assert cell(table, "a", "macro").value == 75.0
    assert "ECE: expected calibration error in 15 bins" in " ".join(table.notes)


def test_runs_without_a_calibration_have_no_such_column(tmp_path):
    table = compare([run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})])
    assert "ece" not in {column.key for column in table.columns}


def test_a_mean_over_tasks_with_an_undefined_one_is_undefined_and_says_which(tmp_path):
    group = tmp_path / "both"
    RunFolder(group).begin("teacher: t\n", {}, keep=False)
    run(group / "mrpc", "mrpc", {"accuracy": 70.0}, {"accuracy": 90.0})
    second = run(group / "sst2", "sst2", {"accuracy": None}, {"accuracy": 60.0})
    record = read_record(second)
    record.scores["validation"]["student"][0]["reason"] = "one example says nothing"
    RunFolder(second).write_record(record)
    table = compare([group])
    for key in ("macro", "retained"):
        assert cell(table, "both", key).value is None
        assert "sst2 is undefined: one example says nothing" in cell(table, "both", key).reason
    assert any("both, sst2/accuracy: no value, one example says nothing" in note for note in table.notes)


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({"accuracy": 5.0}, {"accuracy": -3.0}, "the teacher's score, -3, is not above 0"),
        ({"accuracy": 5.0}, {"accuracy": 0.0}, "the teacher's score, 0, is not above 0"),
        ({"accuracy": 5.0}, {"accuracy": None}, "the teacher's score is undefined: nothing says why"),
        ({"accuracy": None}, {"accuracy": 5.0}, "the student's score is undefined: nothing says why"),
        ({"ppl": 0.0}, {"ppl": 5.0}, "the student's score, 0, is not above 0"),
    ],
)
def test_what_is_retained_of_nothing_is_a_dash_with_its_true_reason(tmp_path, ours, theirs, reason):
    found = cell(compare([run(tmp_path / "a", "sst2", ours, theirs)]), "a", "retained")
    assert (found.value, found.reason) == (None, reason)


def test_the_mean_of_seeds_says_which_seed_is_undefined_and_why(tmp_path):
    runs = [run(tmp_path / f"arm-{n}", "sst2", {"accuracy": 70.0 if n else None}, seed=n) for n in range(3)]
    found = cell(compare(runs), "arm", "sst2/accuracy")
    assert (found.value, found.reason) == (None, "seed 0: nothing says why")


def test_the_class_that_f1_is_of_is_said_once_under_the_table(tmp_path):
    runs = []
    for number in range(2):
        folder = run(tmp_path / f"run{number}x", "mrpc", {"f1": 70.0 + number})
        record = read_record(folder)
        record.scores["validation"]["student"][0]["note"] = "of the class 'equivalent'"
        RunFolder(folder).write_record(record)
        runs.append(folder)
    notes = compare(runs).notes
    assert [note for note in notes if "equivalent" in note] == ["mrpc/f1: of the class 'equivalent'"]


def test_every_dash_of_a_table_has_its_reason_below(tmp_path):
    taught = run(tmp_path / "taught", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    alone = run(tmp_path / "alone", "sst2", {"accuracy": 70.0})
    table = compare([taught, alone])
    dashes = {
        (row.name, column.key)
        for row in table.rows
        for column in table.columns
        if not column.training and (column.key not in row.cells or row.cells[column.key].value is None)
    }
    assert dashes == {("teacher t", "agreement"), ("teacher t", "speed-up")} | {
        ("alone", key) for key in ("agreement", "retained", "speed-up")
    }
    assert "– in agreement, speed-up of teacher t: a teacher is not compared with itself" in table.notes
    assert (
        "– in agreement, retained, speed-up of alone: there is no teacher whose answers can be compared" in table.notes
    )


def test_a_table_without_a_dash_has_no_note_on_dashes(tmp_path):
    runs = [run(tmp_path / f"run{n}", "sst2", {"accuracy": 80.0}) for n in (1, 2)]
    assert not [note for note in compare(runs).notes if note.startswith("–")]


def test_runs_of_other_teachers_or_other_scored_texts_are_no_seeds_of_one_recipe(tmp_path):
    runs = [run(tmp_path / f"arm-{n}", "sst2", {"accuracy": 80.0 + n}, {"accuracy": 90.0}, seed=n) for n in (0, 1)]
    record = read_record(runs[1])
    RunFolder(runs[1]).write_record(replace(record, teacher=replace(record.teacher, revision="2")))
    runs.append(run(tmp_path / "arm-2", "sst2", {"accuracy": 82.0}, {"accuracy": 90.0}, seed=2, fingerprint="cd"))
    rows = [row for row in compare(runs).rows if row.kind == "student"]
    assert [(row.name, row.seeds) for row in rows] == [("arm-0", (0,)), ("arm-1", (1,)), ("arm-2", (2,))]


def signed(path, seed, metric, value, teacher=20.0):
    path = run(path, "stsb", {"accuracy": value}, {"accuracy": teacher}, seed=seed)
    tree = json.loads((path / "record.json").read_text().replace('"accuracy"', f'"{metric}"'))
    RunFolder(path).write_record(RunRecord.from_json(tree, "it"))
    return path


def test_the_interval_of_a_mean_below_0_holds_the_mean(tmp_path):
    table = compare([signed(tmp_path / f"arm-{n}", n, "pearson", -31.0 + n) for n in (0, 1, 2)])
    for key in ("stsb/pearson", "retained"):
        found = cell(table, "arm", key)
        assert found.low < found.value < found.high < 0


def test_an_interval_of_what_may_be_below_0_does_not_end_at_0(tmp_path):
    table = compare([signed(tmp_path / f"arm-{n}", n, "pearson", value) for n, value in enumerate((1.0, 9.0))])
    assert cell(table, "arm", "stsb/pearson").low < 0
    assert cell(table, "arm", "retained").low < 0


def test_an_interval_of_what_is_never_below_0_ends_at_0(tmp_path):
    runs = [run(tmp_path / f"arm-{n}", "sst2", {"accuracy": v}, {"accuracy": 9.0}, n) for n, v in enumerate((1.0, 9.0))]
    for path, value in zip(runs, (10.0, 90.0), strict=True):
        record = read_record(path)
        record.scores["validation"]["agreement"]["value"] = value
        RunFolder(path).write_record(record)
    table = compare(runs)
    assert [cell(table, "arm", key).low for key in ("sst2/accuracy", "retained", "agreement")] == [0, 0, 0]


def test_what_is_beyond_every_number_is_a_dash_with_its_reason(tmp_path):
    table = compare([run(tmp_path / "a", "sst2", {"accuracy": 1e300}, {"accuracy": 1e-300})])
    assert cell(table, "a", "retained").value is None
    assert "beyond what a float holds" in cell(table, "a", "retained").reason
    json.dumps(table.to_json(), allow_nan=False)


def test_the_tokens_of_a_latency_are_those_that_the_models_read(tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    record = read_record(path)
    short = {"student": replace(record.student, tokens=64), "teacher": replace(record.teacher, tokens=64)}
    RunFolder(path).write_record(replace(record, **short))
    assert any("latency: one forward pass over 64 tokens" in note for note in compare([path]).notes)


def unmeasured(path, **weights):
    """A run without a profile."""
    made = run(path, "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, **weights)
    record = read_record(made)
    bare = {who: replace(getattr(record, who), latency_ms=None, flops=None) for who in ("student", "teacher")}
    RunFolder(made).write_record(replace(record, **bare))
    return made


@pytest.mark.parametrize("turned", [False, True])
def test_a_teachers_costs_are_those_of_a_run_that_measured_them_whichever_comes_first(tmp_path, turned):
    measured = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, beta=1.0)
    both = [measured, unmeasured(tmp_path / "b", beta=2.0)]
    table = compare(both[::-1] if turned else both)
    [teacher] = [row for row in table.rows if row.kind == "teacher"]
    assert teacher.cells["latency"].value == read_record(measured).teacher.latency_ms


def test_a_speed_up_that_is_missing_is_said_to_lack_its_latency_and_not_a_teacher(tmp_path):
    measured = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, beta=1.0)
    notes = compare([measured, unmeasured(tmp_path / "b", beta=2.0)]).notes
    assert [note for note in notes if "speed-up of b" in note] == ["– in speed-up of b: latency was not measured"]


def test_columns_that_are_chosen_show_a_dash_where_a_run_has_none(tmp_path):
    measured = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, beta=1.0)
    table = compare([measured, unmeasured(tmp_path / "b", beta=2.0)], metrics=["latency"])
    [costs] = table_layouts(table)
    assert {row.text: cell.number for row, [cell] in costs.lines} == {"teacher t": "3.0", "a": "2.0", "b": "–"}
    assert "– in latency of b: it was not measured" in table.notes


@pytest.mark.parametrize("asked", [{"metrics": ["speed-up"]}, {"sort": "latency"}, {"filters": ["flops<9"]}])
def test_a_column_that_no_profile_measured_is_not_called_unknown(tmp_path, asked):
    with pytest.raises(UsageError, match=r"no run has a value in column '[a-z-]*': they were made with --no-profile"):
        compare([unmeasured(tmp_path / "b")], **asked)


def test_a_speed_up_without_a_teacher_is_not_laid_to_a_missing_profile(tmp_path):
    with pytest.raises(UsageError, match="unknown column 'speed-up'"):
        compare([run(tmp_path / "alone", "sst2", {"accuracy": 80.0})], metrics=["speed-up"])
