"""A comparison in every form: the same numbers, told apart in the same way, broken by no name and no width."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kdalign.comparison.compare import compare
from kdalign.comparison.table import ALIKE, BETTER, VERDICTS, WORSE, Cell, Column, ComparisonTable, Row
from kdalign.errors import UsageError
from kdalign.report.formats import FORMATS, comparison_as, form_for
from kdalign.report.layout import fold_words, in_digits
from kdalign.runs.folder import RunFolder
from support.records import run
from support.tiny import one_line

GOLDEN = Path(__file__).parent / "golden"
LONG = "joint_with_a_long_name-and-another-part"
ODD = r"50%_a&b #1 $x^2 {y} \z ~<i>|`--"
ARMS = ("labels", "soft", "align", LONG, "joint-cka")


def shown(table, form, transpose=False, width=80, colour=False):
    made = comparison_as(table, form, transpose)
    if isinstance(made, str):
        return made
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(made, highlight=False)
    return file.getvalue()


def columns():
    return (
        Column("sst2/accuracy", "sst2 accuracy", "%", 1, task="sst2"),
        Column("sst2/ppl", "sst2 ppl", "", 1, higher_is_better=False, task="sst2"),
        Column("retained", "retained", "%", 1),
        Column("parameters", "params", "M", 1, higher_is_better=False, cost=True),
        Column("steps", "steps", "", 0, higher_is_better=False, cost=True, training=True),
    )


@pytest.fixture
def table():
    """A teacher, three students with verdicts beside the last, a pseudo-perplexity, and a published row."""
    third = 100 / 3
    rows = (
        Row("teacher t", "teacher", (), {"sst2/accuracy": Cell(90.0, 85.0, 93.0), "parameters": Cell(2.0)}),
        Row(
            "joint",
            "student",
            (0, 1),
            {
                "sst2/accuracy": Cell(80.0 + third / 10, 79.0, 87.0, best=True, verdict=BETTER),
                "sst2/ppl": Cell(1234.5, best=True, verdict=ALIKE),
                "retained": Cell(98.1, best=True),
                "parameters": Cell(1.0),
                "steps": Cell(5.0),
            },
        ),
        Row(
            ODD,
            "student",
            (0,),
            {
                "sst2/accuracy": Cell(81.0, 77.0, 84.0, second=True, verdict=WORSE),
                "retained": Cell(None, reason="no teacher"),
                "steps": Cell(5.0),
            },
        ),
        Row("[labels]", "student", (0,), {"sst2/accuracy": Cell(70.0), "sst2/ppl": Cell(2000.0, second=True)}),
        Row("m (validation)", "evaluation", (), {"sst2/ppl": Cell(9.25, mark="pseudo")}),
        Row("XLNet", "reference", (), {"sst2/ppl": Cell(9.1, written="9.10")}, source="a paper", mark="†"),
    )
    return ComparisonTable(
        columns(), rows, ("one seed: 95 % intervals, 5 & more_of_it", "[2] is a note", "* pseudo: <b>")
    )


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Five arms over five tasks of two metrics each."""
    root = tmp_path_factory.mktemp("arms")
    for number, name in enumerate(ARMS):
        RunFolder(root / name).begin("teacher: t\n", {}, keep=False)
        for place, task in enumerate(("cola", "mrpc", "qqp", "sst2", "rte")):
            ours = {"accuracy": 70.0 + number + 3 * place, "f1": 61.25 + number + 2 * place}
            run(root / name / task, task, ours, {"accuracy": 90.0, "f1": 88.0}, alpha=0.1 * number)
    return root


@pytest.fixture(scope="module")
def many(arms):
    return compare([arms])


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_each_form_is_as_it_was_looked_at(table, form, transpose):
    """WRITE_GOLDEN=1 writes them anew, to be looked at."""
    ending = {"rich": "txt", "markdown": "md", "latex": "tex"}.get(form, form)
    file = GOLDEN / f"compare{'-transposed' if transpose else ''}.{ending}"
    text = shown(table, form, transpose)
    if os.environ.get("WRITE_GOLDEN"):
        file.write_bytes(text.encode())
    assert text.encode() == file.read_bytes()


def test_best_is_bold_and_second_underlined_in_every_form_for_people(table):
    terminal = shown(table, "rich", colour=True)
    assert "\x1b[1m83.3\x1b[0m" in terminal
    assert "\x1b[4m81.0\x1b[0m" in terminal
    assert "**83.3**↑ (79.0 to 87.0)" in shown(table, "markdown")
    assert "<u>81.0</u>↓ (77.0 to 84.0)" in shown(table, "markdown")
    latex = shown(table, "latex")
    assert r"\textbf{83.3}\rlap{$\uparrow$}" in latex
    assert r"\underline{81.0}\rlap{$\downarrow$}" in latex
    assert r"\textbf{1,234}\rlap{$\approx$}" in latex


def test_markdown_shows_no_sign_of_a_name_as_markup(table):
    text = shown(table, "markdown")
    assert "- \\* pseudo: &lt;b>" in text
    assert r"\z \~&lt;i>\|\`--" in text.replace("\\\\z", r"\z")


def test_a_caption_says_only_what_its_table_has(table):
    captions = re.findall(r"caption{(.*?)}\n", shown(table, "latex", transpose=True))
    assert captions[0] == "Scores. Best bold, second underlined."
    assert captions[1] == "Scores, continued. Second underlined."
    assert captions[-1] == "Training."


def test_numbers_stand_above_one_another_whatever_is_behind_them(table):
    rows = shown(table, "rich", width=100).splitlines()
    ends = {
        line.index(number) + len(number)
        for number in ("90.0", "83.3", "81.0", "70.0")
        for line in rows
        if number in line
    }
    assert len(ends) == 1


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("transpose", [False, True])
def test_five_tasks_of_two_metrics_fit_the_terminal(many, width, transpose):
    lines = shown(many, "rich", transpose, width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    heads = text.split("──")[0]
    for word in ("accuracy",) if transpose else ("mean", "macro", "agreement", "retained"):
        assert word in (text if transpose else heads), f"{word} is broken"
    assert not re.search(r"^\s*\S\s*$", text, re.M), "a column of one letter a line"


def test_what_finds_no_room_is_said_and_nothing_is_lost_from_a_wide_terminal(many):
    flat = " ".join(shown(many, "rich").split())
    assert "no room for intervals, cola accuracy, cola f1, mrpc accuracy" in flat
    wide = shown(many, "rich", width=400)
    assert "no room" not in wide
    assert "(71.0 to 73.0)" in wide


def test_metrics_that_are_asked_for_without_their_mean_are_all_shown(arms):
    text = shown(compare([arms], ["accuracy", "f1"]), "rich")
    assert "Scores, continued" in text
    assert "no room for intervals: a wider terminal" in " ".join(text.split())
    assert {f"{70.0 + number + 3 * place:.1f}" for number in range(5) for place in range(5)} <= set(text.split())


@pytest.mark.parametrize("width", [1, 7, 20, 30, 40])
def test_a_narrow_terminal_folds_what_it_must_and_never_fails(many, table, width):
    for one in (many, table):
        for transpose in (False, True):
            text = shown(one, "rich", transpose, width)
            assert max(map(len, text.splitlines())) <= width
            assert width < 30 or {"90.0", "100.0" if one is many else "83.3"} <= set(re.findall(r"[\d.]+", text))


def test_names_are_folded_where_words_end():
    assert fold_words("joint_with_a_long_name", 12) == ["joint_with_", "a_long_name"]
    assert fold_words("averyveryverylongword", 8) == ["averyver", "yverylon", "gword"]
    assert fold_words("two words", 5) == ["two", "words"]
    assert fold_words("", 5) == [""]


def cells_of(line):
    """The cells of a row of LaTeX."""
    return re.split(r"(?<!\\)&", line)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("which", ["table", "many"])
def test_latex_is_well_formed(request, which, transpose):
    text = shown(request.getfixturevalue(which), "latex", transpose)
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    assert len(set(re.findall(r"\\label{(.*?)}", text))) == text.count(r"\begin{table}") == text.count(r"\caption{")
    for spec, body in re.findall(r"\\begin{tabular}{@{}(l?r+)@{}}\n(.*?)\n  \\end{tabular}", text, re.S):
        rows = [line.strip() for line in body.splitlines() if "&" in line and "cmidrule" not in line]
        assert rows
        for row in rows:
            wide = sum(int(size) - 1 for size in re.findall(r"\\multicolumn{(\d+)}", row))
            assert len(cells_of(row)) + wide == len(spec), row
            assert re.search(r"\\\\(\[2pt\])?$", row), row
    assert not re.search(r"\\\\\n\s*[\[*]", text), "read as an argument of the line's end"


def test_latex_shows_no_sign_of_a_name_as_a_command(table):
    text = shown(table, "latex")
    assert r"50\%\_a\&b \#1 \$x\textasciicircum{}2 \{y\} \textbackslash{}z" in text.replace(" \\\\ ", " ")
    assert r"{}[labels]" in text
    assert r"XLNet$\dagger$" in text
    assert r"5 \& more\_of\_it\par" in text
    assert text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("transpose", [False, True])
def test_latex_compiles(table, many, tmp_path, transpose):
    row = Row("joint − labels", "difference", (0, 1), {"sst2/accuracy": Cell(-1.5, -3.0, 0.5, verdict="≈")})
    held = replace(table, rows=(*table.rows, row), notes=("− labels: how much better; ↑ better, ↓ worse",))
    body = "\n".join(shown(one, "latex", transpose) for one in (held, many))
    (tmp_path / "x.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_is_one_flat_table_with_numbers_in_full(table):
    text = shown(table, "csv")
    assert text.endswith("\r\n")
    assert text.count("\r\n") == text.count("\n") == 1 + len(table.rows)
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert {len(row) for row in rows} == {len(head)} == {3 + 4 * len(table.columns)}
    read = [dict(zip(head, row, strict=True)) for row in rows]
    assert float(read[1]["sst2/accuracy"]) == 80.0 + 100 / 3 / 10
    assert (read[1]["sst2/accuracy_low"], read[1]["sst2/accuracy_high"]) == ("79.0", "87.0")
    assert read[1]["sst2/accuracy_verdict"] == BETTER
    assert read[1]["seeds"] == "0 1"
    assert read[2]["model"] == ODD
    assert read[2]["retained"] == read[0]["retained"] == ""
    assert read[5]["kind"] == "reference"


def test_csv_quotes_what_would_end_a_field_and_has_verdicts_only_where_there_are_any():
    rows = (Row('a, "b"\nc', "student", (0,), {"sst2/accuracy": Cell(0.1 + 0.2)}),)
    text = shown(ComparisonTable(columns()[:1], rows), "csv")
    head = "model,kind,seeds,sst2/accuracy,sst2/accuracy_low,sst2/accuracy_high\r\n"
    assert text == head + '"a, ""b"" c",student,0,0.30000000000000004,,\r\n'


def test_transposed_csv_tells_models_of_one_name_apart(table):
    twice = replace(table, rows=(table.rows[0], table.rows[0]))
    head, first, *_ = csv.reader(io.StringIO(shown(twice, "csv", transpose=True), newline=""))
    assert head == ["metric", "unit"] + [f"teacher t{n}{part}" for n in ("", " #2") for part in ("", "_low", "_high")]
    assert first == ["sst2/accuracy", "%", *["90.0", "85.0", "93.0"] * 2]


def test_transposed_json_has_a_cell_for_every_model(table):
    tree = json.loads(shown(table, "json", transpose=True))
    assert [model["name"] for model in tree["models"]] == [row.name for row in table.rows]
    accuracy = tree["metrics"][0]
    assert (accuracy["key"], accuracy["unit"]) == ("sst2/accuracy", "%")
    assert [cell and cell["value"] for cell in accuracy["cells"]][2:] == [81.0, 70.0, None, None]
    assert tree["notes"] == list(table.notes)


def test_transposing_twice_changes_nothing(many):
    from kdalign.report.layout import table_layouts

    for grid in table_layouts(many):
        assert grid.transposed().transposed() == grid
        assert len(grid.transposed().rows) == len(grid.columns)


def test_a_table_of_no_rows_is_a_table():
    for form in FORMATS:
        assert isinstance(shown(ComparisonTable(columns(), ()), form), str)


def test_verdicts_are_one_sign_each():
    assert VERDICTS == ("↑", "↓", "≈")


def test_the_form_is_the_one_asked_for_else_the_files():
    for ending, form in {".md": "markdown", ".TEX": "latex", ".csv": "csv", ".json": "json", ".txt": "rich"}.items():
        assert form_for(None, Path(f"x{ending}")) == form
    assert form_for("csv", Path("x.md")) == "csv"
    assert form_for(None, Path("x")) == form_for(None) == "rich"
    with pytest.raises(UsageError, match=r"unknown ending '.cvs'; did you mean '.csv'\? \(accepted: .txt, .md"):
        form_for(None, Path("x.cvs"))
    with pytest.raises(UsageError, match="unknown format 'latx'; did you mean 'latex'"):
        form_for("latx")


def test_the_command_writes_what_the_files_ending_says(kdalign, tmp_path):
    runs = [run(tmp_path / name, "sst2", {"accuracy": value}, hard=value) for name, value in (("a", 1), ("b", 2))]
    begin = {"t.tex": "% needs", "t.csv": "model,kind", "t.json": "{", "t.md": "| model", "t.txt": "Scores"}
    for name, text in begin.items():
        status, out, err = kdalign("compare", *runs, "--out", name)
        assert (status, out) == (0, ""), err
        assert Path(name).read_text().startswith(text)
    assert Path("t.csv").read_bytes().endswith(b"\r\n")
    status, out, _ = kdalign("compare", *runs, "--format", "csv")
    assert out.encode() == Path("t.csv").read_bytes()
    assert kdalign("compare", *runs, "--out", "u.md", "--format", "csv", "--transpose")[0] == 0
    assert Path("u.md").read_text().startswith("metric,unit,a,")
    status, out, err = kdalign("compare", *runs, "--out", "t.pdf")
    assert (status, out) == (2, "")
    assert "unknown ending '.pdf'" in one_line(err)
    assert not Path("t.pdf").exists()


def test_forty_columns_print_no_garbage(kdalign, tmp_path, monkeypatch):
    runs = [run(tmp_path / f"{LONG}-{value}", "sst2", {"accuracy": value, "f1": 50.0}, hard=value) for value in (1, 2)]
    monkeypatch.setenv("COLUMNS", "40")
    status, out, _ = kdalign("compare", *runs)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 40
    assert "…" not in out


def test_what_rounds_to_nothing_has_no_sign():
    assert [in_digits(value, 1) for value in (-0.03, -0.06, 0.04, -1234.5)] == ["0.0", "-0.1", "0.0", "-1,234"]


def test_a_perplexity_of_very_many_digits_is_short_and_whole_in_forty_columns():
    from rich.console import Console

    from kdalign.comparison.table import Cell, Column, ComparisonTable, Row

    columns = tuple(Column(f"lm/{name}", f"lm {name}", "", 1, False, "lm") for name in ("ppl", "word_ppl"))
    cells = {"lm/ppl": Cell(1.5e9, 1.25e8, 2e10), "lm/word_ppl": Cell(1.2345e97, 1e80, 1e102)}
    table = ComparisonTable(columns, (Row("a_student_of_a_long_name", "student", (0,), cells),))
    console = Console(width=40)
    with console.capture() as captured:
        console.print(comparison_as(table, "rich"))
    assert {"1.50e+09", "1.23e+97"} <= set(captured.get().split())


HOSTILE = "a\x1b[31m\u202e=x\nb\u2028c\udcff"


def test_no_form_has_a_control_character_or_half_a_letter_of_a_name_and_none_raises(table):
    rows = tuple(replace(row, name=f"{row.name} {HOSTILE}", mark="\x07") for row in table.rows)
    columns_ = tuple(replace(column, title=f"{column.title}\x9b", unit="%\x1b") for column in table.columns)
    hostile = replace(table, rows=rows, columns=columns_, notes=(f"note {HOSTILE}",))
    for form in FORMATS:
        for transpose in (False, True):
            text = shown(hostile, form, transpose)
            text.encode()
            assert all(sign == "\n" or sign.isprintable() for sign in text.replace("\r\n", "\n")), form


def test_names_that_differ_only_in_what_is_not_shown_stay_two_rows_of_two_names():
    rows = tuple(
        Row(name, "student", (0,), {"sst2/accuracy": Cell(50.0)}) for name in ("a", "a\x1b", "a\u202e", "b\x00")
    )
    for form in ("csv", "markdown", "rich", "latex"):
        text = shown(ComparisonTable(columns()[:1], rows), form)
        assert r"a\x1b" in text.replace(r"\\", "\\").replace(r"\textbackslash{}", "\\"), form
        assert r"a\u202e" in text.replace(r"\\", "\\").replace(r"\textbackslash{}", "\\"), form


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", '"=1', "'=1", "\n-2", "\uff1d1", "=cmd|' /C calc'!A0"],
)
def test_no_name_is_a_formula_in_a_spreadsheet_and_negative_numbers_stay_numbers(name):
    column = Column(f"{name}/x", "x", name, 1, task=name)
    for transpose in (False, True):
        row = Row(name, "student", (0,), {column.key: Cell(-1.5, -2.0, 0.5)})
        text = shown(ComparisonTable((column,), (row,)), "csv", transpose)
        cells = [cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line]
        assert {"-1.5", "-2.0", "0.5"} <= set(cells)
        for cell in cells:
            assert not re.match(r"""[\s"']*[=+@\uff1d-]""", cell) or cell.startswith("'") or float(cell) < 0
