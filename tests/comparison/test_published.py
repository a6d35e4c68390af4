"""Rows that others have published, beside measured ones: shown as written, marked, last, and never ranked."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from kdalign.comparison.compare import compare
from kdalign.comparison.published import read_published
from kdalign.errors import UsageError
from kdalign.report.formats import comparison_as
from support.records import best, cell, evaluation, run, scores

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TABLES = [EXAMPLES / "paper-table-1.yaml", EXAMPLES / "paper-table-2.yaml"]
PAPER = {  # as printed in the two tables of arXiv:2412.19449
    "DeBERTa": ("8.75", "35.2", "42.8", "9.6%"),
    "XLNet": ("9.10", "33.5", "41.2", "10.2%"),
    "GPT-3": ("7.85", "37.8", "44.6", "8.9%"),
    "GPT-4": ("6.95", "41.0", "47.5", "7.8%"),
    "Ours (distilled, aligned)": ("7.20", "39.5", "46.2", "8.2%"),
    "Distillation only": ("7.85", "36.8", "43.5", "8.6%"),
    "Feature alignment only": ("8.20", "34.2", "41.8", "9.3%"),
    "Ours (both)": ("7.20", "39.5", "46.2", "8.2%"),
}


@pytest.fixture
def runs(tmp_path):
    """Two runs on tokens; every published perplexity is below theirs, every published score above."""
    return [
        run(tmp_path / "poor", "lm", {"ppl": 12.0, "word_ppl": 60.0}),
        run(tmp_path / "good", "lm", {"ppl": 8.0, "word_ppl": 40.0}, {"ppl": 6.0, "word_ppl": 30.0}),
    ]


@pytest.fixture
def reference(tmp_path):
    """Write a reference file, its text given."""

    def write(text, name="rows.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def published(rows, **keys):
    return json.dumps({"source": "a paper", **keys, "rows": rows})


def markdown(table):
    """The tables, each a dictionary of rows by name, and the notes."""
    tables, notes = [], []
    for part in str(comparison_as(table, "markdown")).split("\n\n"):
        lines = part.splitlines()
        if lines[0].startswith("- "):
            notes = [line.removeprefix("- ") for line in lines]
            continue
        heads, _, *rows = ([each.strip() for each in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
        tables.append({row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows})
    return tables, notes


def terminal(table, width=100, colour=False):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(comparison_as(table, "rich"))
    return file.getvalue()


def test_the_papers_rows_appear_as_they_were_written(runs):
    table = compare(runs, references=TABLES)
    shown = {
        row.name: tuple(
            row.cells[key].written for key in ("lm/word_ppl", *(f"published/{m}" for m in ("bleu", "rouge", "cer")))
        )
        for row in table.rows
        if row.kind == "reference"
    }
    assert shown == PAPER
    (measured, apart, *_), _ = markdown(table)
    for name, values in PAPER.items():
        mark = "†" if name in list(PAPER)[:5] else "‡"
        assert measured[name + mark] == {
            "lm ppl": "–", "lm word_ppl": values[0], "agreement (%)": "–", "retained (%)": "–",
        }  # fmt: skip
        assert tuple(apart[name + mark].values()) == values[1:]
    assert list(apart["XLNet†"]) == ["published bleu", "published rouge", "published cer"]


def test_published_rows_come_last_are_never_best_and_change_nothing_that_was_measured(runs):
    alone, beside = compare(runs), compare(runs, references=TABLES)
    assert [row.kind for row in beside.rows] == ["teacher", "student", "student"] + ["reference"] * 8
    assert beside.rows[:3] == alone.rows
    assert beside.columns[: len(alone.columns)] == alone.columns
    assert beside.notes[: len(alone.notes)] == alone.notes
    assert best(beside, "lm/word_ppl") == ["good"]
    assert not any(each.best for row in beside.rows[3:] for each in row.cells.values())
    assert all({key.partition("/")[0] for key in row.cells} <= {"lm", "published"} for row in beside.rows[3:])
    assert "**" not in "".join(line for line in str(comparison_as(beside, "markdown")).splitlines() if "†" in line)


def test_sorting_ranks_measured_rows_alone(runs):
    for key in ("word_ppl", "retained", "steps"):
        names = [row.name for row in compare(runs, sort=key, references=TABLES[:1]).rows]
        assert names[3:] == list(PAPER)[:5], key
    assert [row.name for row in compare(runs, sort="word_ppl", references=TABLES[:1]).rows][:3] == [
        "teacher t", "good", "poor",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="unknown column 'cer'"):
        compare(runs, sort="cer", references=TABLES)


def test_each_source_has_its_mark_and_a_note_with_what_is_not_known(runs):
    _, notes = markdown(compare(runs, references=TABLES))
    first, second, both = notes[-3:]
    assert first.startswith("† published, not measured here: arXiv:2412.19449, table 1; the paper does not say how")
    assert second.startswith("‡ published, not measured here: arXiv:2412.19449, table 2; the paper does not say how")
    assert first.endswith("seeds; shown here: its ppl under word_ppl")
    assert both.startswith("†, ‡: shown with measured rows")
    assert both.endswith("do not rank them together")


def test_a_rows_own_source_wins_and_takes_nothing_of_what_the_file_says_of_its_own(runs, reference):
    rows = [{"model": str(n), "scores": {"ppl": n}, "source": f"source {n}"} for n in range(1, 6)]
    rows += [{"model": "6", "scores": {"ppl": 6}}, {"model": "7", "scores": {"ppl": 7}, "note": "one seed"}]
    table = compare(runs, references=[reference(published(rows, note="no seeds"), "rows.json")])
    found = {row.name: (row.mark, row.source, row.note) for row in table.rows if row.kind == "reference"}
    assert found["1"] == ("†", "source 1", "")
    assert found["4"] == ("¶", "source 4", "")
    assert found["5"] == ("†5", "source 5", "")
    assert found["6"] == ("†6", "a paper", "no seeds")
    assert found["7"] == ("†7", "a paper", "one seed")
    assert table.notes[-3] == "†6 published, not measured here: a paper; no seeds"


def test_the_terminal_dims_published_rows_behind_a_gap(runs):
    table = compare(runs, references=TABLES[:1])
    lines = terminal(table).splitlines()
    at = next(number for number, line in enumerate(lines) if "DeBERTa†" in line)
    assert not lines[at - 1].strip()
    assert "8.75" in lines[at]
    assert "Published, not measured here" in "\n".join(lines)
    dim = next(line for line in terminal(table, colour=True).splitlines() if "XLNet†" in line)
    assert re.search(r"\x1b\[2m[^\x1b]*9\.10", dim), "dim is 2"
    assert "\x1b[1m" not in dim, "bold is 1"


def test_published_columns_leave_the_intervals_of_what_was_measured(runs):
    table = compare(runs, references=TABLES)
    assert "(39.0 to 41.0)" in str(comparison_as(table, "markdown"))
    narrow = terminal(table, width=80)
    assert "(39.0 to 41.0)" in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_costs_know_no_published_rows(runs):
    (*_, costs, _), _ = markdown(compare(runs, references=TABLES))
    assert list(costs) == ["teacher t", "poor", "good"]


def test_json_keeps_source_note_and_what_the_source_calls_a_score(runs):
    tree = json.loads(str(comparison_as(compare(runs, references=TABLES[:1]), "json")))
    row = next(row for row in tree["rows"] if row["name"] == "XLNet")
    assert (row["kind"], row["source"], row["mark"]) == ("reference", "arXiv:2412.19449, table 1", "†")
    assert row["note"].startswith("the paper does not say")
    ppl, cer = row["cells"]["lm/word_ppl"], row["cells"]["published/cer"]
    assert (ppl["value"], ppl["written"], ppl["called"], ppl["low"], ppl["best"]) == (9.1, "9.10", "ppl", None, False)
    assert (cer["value"], cer["written"]) == (10.2, "10.2%")
    assert [column["key"] for column in tree["columns"] if column["published"]] == [
        "published/bleu", "published/rouge", "published/cer",
    ]  # fmt: skip
    assert all(row["source"] == "" for row in tree["rows"] if row["kind"] != "reference")


def test_without_a_mapping_a_score_is_shown_under_its_own_name(runs, reference):
    table = compare(runs, references=[reference(published([{"model": "m", "scores": {"ppl": 9, "f1": 50}}]))])
    assert cell(table, "m", "lm/ppl").value == 9
    assert set(table.rows[-1].cells) == {"lm/ppl", "published/f1"}
    assert not any("shown here" in note for note in table.notes)


def test_measured_columns_about_the_teacher_and_costs_take_no_published_number(runs, reference):
    scores = {"retained": 99, "agreement": 98, "parameters": 66}
    table = compare(runs, references=[reference(published([{"model": "m", "scores": scores}]))])
    assert set(table.rows[-1].cells) == {"published/retained", "published/agreement", "published/parameters"}
    assert not any("shown with measured rows" in note for note in table.notes)


@pytest.fixture
def three(tmp_path):
    """Runs of three tasks, two of which have accuracy."""
    return [
        run(tmp_path / "tokens", "lm", {"ppl": 8.0, "word_ppl": 40.0}),
        run(tmp_path / "pairs", "mrpc", {"accuracy": 70.0, "f1": 80.0}),
        run(tmp_path / "films", "sst2", {"accuracy": 90.0}),
    ]


def test_a_row_without_a_task_is_in_each_tasks_table_that_has_its_column(three, reference):
    rows = [{"model": "both", "scores": {"accuracy": 91, "f1": 88}}, {"model": "words", "scores": {"ppl": 9}}]
    (tokens, pairs, films, *_), _ = markdown(compare(three, references=[reference(published(rows))]))
    assert list(tokens) == ["tokens", "words†"]
    assert pairs["both†"] == {"mrpc accuracy (%)": "91", "mrpc f1 (%)": "88"}
    assert films["both†"] == {"sst2 accuracy (%)": "91"}
    assert list(films) == ["films", "both†"]


def test_a_row_with_a_task_is_in_its_table_alone(three, reference):
    rows = [
        {"model": "its", "task": "sst2", "scores": {"accuracy": 91, "ppl": 7}},
        {"model": "other", "task": "qnli", "scores": {"accuracy": 92}},
    ]
    table = compare(three, references=[reference(published(rows))])
    (tokens, pairs, films, apart, *_), _ = markdown(table)
    assert list(tokens) == ["tokens"]
    assert list(pairs) == ["pairs"]
    assert films["its†"] == {"sst2 accuracy (%)": "91"}
    assert apart == {
        "its†": {"published sst2 ppl": "7", "published qnli accuracy": "–"},
        "other†": {"published sst2 ppl": "–", "published qnli accuracy": "92"},
    }
    assert [row.name for row in compare(three, ["ppl"], references=[reference(published(rows))]).rows][3:] == ["its"]


def test_a_score_can_name_one_tasks_column(three, reference):
    text = published([{"model": "m", "scores": {"MRPC": "88.9%", "accuracy": 91}}], columns={"MRPC": "mrpc/accuracy"})
    table = compare(three, references=[reference(text)])
    assert {key: each.written for key, each in table.rows[-1].cells.items()} == {
        "mrpc/accuracy": "88.9%",
        "sst2/accuracy": "91",
    }
    assert "shown here: its MRPC under accuracy" in table.notes[-2]


def test_a_row_over_tasks_keeps_its_table_beside_published_ones(tmp_path, reference):
    group = tmp_path / "both"
    group.mkdir()
    (group / "recipe.yaml").write_text("teacher: none\n")
    run(group / "mrpc", "mrpc", {"accuracy": 70.0})
    run(group / "sst2", "sst2", {"accuracy": 85.0})
    rows = [{"model": "m", "scores": {"mrpc/accuracy": 88, "sst2/accuracy": 91, "macro": 89.5}}]
    (first, *_), _ = markdown(compare([group], references=[reference(published(rows))]))
    assert list(first) == ["both", "m†"]
    assert list(first["m†"].values()) == ["88", "91", "89.5"]


def test_metrics_choose_published_columns_too_and_leave_out_rows_without_them(runs, reference):
    file = reference(published([{"model": "m", "scores": {"cer": "9.6%"}}]))
    table = compare(runs, ["cer", "ppl"], references=[*TABLES, file])
    assert [column.key for column in table.columns] == ["lm/ppl", "published/cer"]
    assert len(table.rows) == 3 + 8 + 1
    table = compare(runs, ["word_ppl"], references=[*TABLES, file, TABLES[0], str(TABLES[0])])
    assert [row.name for row in table.rows[3:]] == list(PAPER), "each file once, and no row without a number"
    assert not any("a paper" in note for note in table.notes)


def test_text_of_a_file_breaks_no_table(runs, reference):
    rows = [{"model": "a|b [red]", "scores": {"x|y [z]": 1}, "source": "two\n lines"}]
    table = compare(runs, references=[reference(published(rows))])
    (_, apart, *_), notes = markdown(table)
    assert apart == {r"a\|b [red]†": {r"published x\|y [z\]": "1"}}
    assert notes[-1] == "† published, not measured here: two lines"
    assert "a|b [red]†" in terminal(table)
    assert "[z]" in terminal(table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source: s\nrosw: []", "did you mean 'rows'"),
        ("source: s\nrows: [{model: m, score: {ppl: 1}}]", "row 1: 'score'; did you mean 'scores'"),
        ("source: s\nrows: []", "needs 'rows'"),
        ("source: s\nrows: {model: m}", "needs 'rows'"),
        ("source: s\nrows: [m]", "row 1 takes the keys model, scores"),
        ("source: s\nrows: [{scores: {ppl: 1}}]", "row 1 needs 'model'"),
        ("source: s\nrows: [{model: m}]", "row 1 needs 'scores'"),
        ("source: s\nrows: [{model: m, scores: {}}]", "row 1 needs 'scores'"),
        ("source: s\nrows: [{model: m, scores: 8.75}]", "'scores' takes names with values"),
        ("rows: [{model: m, scores: {ppl: 1}}]", "row 1 has no 'source'"),
        ("source:\nrows: [{model: m, scores: {ppl: 1}}]", "row 1 has no 'source'"),
        ("source: [a, b]\nrows: [{model: m, scores: {ppl: 1}}]", "'source' takes a line of text"),
        ('source: "\\e[31m"\nrows: [{model: m, scores: {ppl: 1}}]', "'source' takes a line of text"),
        ('source: s\nrows: [{model: m, scores: {ppl: "8,75"}}]', "score 'ppl' takes a number such as 8.75 or 9.6%"),
        ("source: s\nrows: [{model: m, scores: {ppl: nan}}]", "takes a number"),
        ("source: s\nrows: [{model: m, scores: {ppl: 1e999}}]", "takes a number"),
        ("source: s\nrows: [{model: m, scores: {ppl: –}}]", "leave out what is not known"),
        ("source: s\ncolumns: {pll: ppl}\nrows: [{model: m, scores: {ppl: 1}}]", "did you mean 'ppl'"),
        ("source: s\ncolumns: {a: ppl}\nrows: [{model: m, scores: {a: 1, ppl: 2}}]", "several scores"),
        ("- a list", "holds no keys (known: source"),
        ("source: [", "cannot read reference file"),
        ("", "holds no keys"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(reference, text, said):
    with pytest.raises(UsageError) as error:
        read_published(reference(text))
    assert said in str(error.value)
    assert "rows.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["true", "null", "NaN", "[1]", '"about 9"'])
def test_json_is_read_by_the_same_rules(reference, value):
    text = '{\t"source": "s", "rows": [{"model": 4, "scores": {"ppl": %s}}]}'
    [row] = read_published(reference(text % "9.10", "rows.json"))
    assert (row.model, row.scores) == ("4", {"ppl": "9.10"})
    with pytest.raises(UsageError, match="takes a number"):
        read_published(reference(text % value, "rows.json"))


def test_a_file_that_is_not_there_names_its_neighbour(kdalign, tmp_path, runs):
    (tmp_path / "paper.yaml").write_text("")
    status, out, err = kdalign("compare", *runs, "--reference", "papers.yaml")
    assert (status, out) == (2, "")
    assert "did you mean 'paper.yaml'" in err
    assert len(err.strip().splitlines()) == 1
    status, _, err = kdalign("compare", "paper.yaml")
    assert status == 2
    assert "--reference paper.yaml" in err


def test_the_command_takes_several_files(kdalign, runs):
    words = [word for file in TABLES for word in ("--reference", file)]
    status, out, _ = kdalign("compare", *runs, *words, "--json")
    assert status == 0
    assert [row["name"] for row in json.loads(out)["rows"] if row["kind"] == "reference"] == list(PAPER)


def test_an_evaluation_with_scores_of_text_and_further_keys_takes_published_numbers_beside_them(tmp_path):
    [score] = scores(accuracy=40.0)
    units = {"bleu": "", "rougeL": "%", "cer": "%", "bits_per_byte": ""}
    made = [
        {**score, "metric": metric, "unit": unit, "higher_is_better": metric in ("bleu", "rougeL"), "device": "cpu"}
        for metric, unit in units.items()
    ]
    file = evaluation(tmp_path / "texts.json", made)
    tree = json.loads(file.read_text())
    tree["results"][0] |= {"generation": {"beams": 1}, "texts": "texts.jsonl"}
    file.write_text(json.dumps({**tree, "made_by": "a later version"}))
    table = compare([file], references=TABLES[:1])
    assert [row.kind for row in table.rows] == ["evaluation"] + ["reference"] * 5
    assert set(table.rows[1].cells) == {"published/ppl", "lm/bleu", "lm/rougeL", "lm/cer"}
    assert cell(table, "GPT-4", "lm/rougeL").written == "47.5"
    (measured, apart), notes = markdown(table)
    assert measured["texts (validation)"]["lm bits_per_byte"] == "40.0 (39.0 to 41.0)"
    assert apart["GPT-4†"] == {"published ppl": "6.95"}
    assert notes[-2].endswith("shown here: its rouge under rougeL")
