"""Delimited text: cells as they are written, quotes by csv's rules or as text, and rows that fit the header."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data.delimited import read_delimited
from kdalign.errors import UsageError


def read(text: str, delimiter: str = ",") -> dict[str, list[str | None]]:
    names, columns = read_delimited(text, delimiter, "'it'")
    return dict(zip(names, columns, strict=True))


@pytest.mark.parametrize("written", ["007", "1.0", "1e5", "True", "None", "null", "NA", "nan", "N/A", "2024-01-05"])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_cell_stays_as_it_is_written(written, delimiter):
    found = read(f"text{delimiter}label\n{written}{delimiter}0\n", delimiter)
    assert found == {"text": [written], "label": ["0"]}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_ends_a_row_and_blank_lines_are_none(end):
    lines = ["text,label", "a,0", "", "  ", "b\u2028c,1", ""]
    assert read(end.join(lines)) == {"text": ["a", "b\u2028c"], "label": ["0", "1"]}
    assert read(end.join([*lines[:2], '"q",1', *lines[2:]]))["text"] == ["a", "q", "b\u2028c"]


def test_an_empty_cell_is_nothing_and_two_quotes_are_the_empty_text():
    assert read('text,label\n,0\n"",1\n') == {"text": [None, ""], "label": ["0", "1"]}


CELLS = st.text(st.sampled_from("ab \",;\t|\n\r'é"), max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_what_pythons_csv_module_writes_is_read_as_it_was(rows):
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    assert list(zip(*read(written.getvalue()).values(), strict=True)) == rows


@pytest.mark.parametrize("text", ['he said ""good""', "a\ttab", "two\nlines", 'a "fine" film', "plain"])
def test_a_tsv_that_pandas_wrote_has_its_quotes_taken_off(text):
    table = pd.DataFrame({"text": [text, 'says "so"', "one"], "label": [1, 0, 1]})
    found = read(table.to_csv(index=False, sep="\t"), "\t")
    assert found == {"text": table.text.tolist(), "label": ["1", "0", "1"]}


def test_a_tsv_with_every_cell_in_quotes_has_them_taken_off():
    assert read('"text"\t"label"\n"a"\t"1"\n', "\t") == {"text": ["a"], "label": ["1"]}


@pytest.mark.parametrize(
    "text",
    ['"so, so" he said', 'he said "so', 'it is 5" long', '"so', '"Well," she said, "no"', 'so "'],
)
def test_a_tsv_with_a_stray_quote_is_text_as_it_is(text):
    rows = [(text, "1"), ('"quoted throughout"', "0"), ('""', "1")]
    found = read("text\tlabel\n" + "".join(f"{one}\t{label}\n" for one, label in rows), "\t")
    assert list(zip(*found.values(), strict=True)) == rows


@pytest.mark.parametrize("text", ['text\tlabel\nplain\t0\n"in quotes"\t1\n', 'text\tlabel\n"a\t1\nb"\t0\n'])
def test_a_tsv_of_which_both_readings_fit_is_refused(text):
    with pytest.raises(UsageError, match=r"'it', line \d: it cannot be told whether the quotes"):
        read(text, "\t")


def test_rows_cut_by_quotes_that_are_text_name_the_quote():
    with pytest.raises(UsageError, match=r"line 2 has 1 cell, and the header 2 .* as one on line 4 is neither"):
        read('text\tlabel\n"two\nlines"\t1\nhe said "so\t0\n', "\t")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,label\na,1,\nb,0\n", "line 2 has 3 cells, and the header 2 .* divided by commas"),
        ("text,label\na, b,1\nc, d,0\n", r"line 2 has 3 cells.* has quotes around it \(\"...\"\)"),
        ("text,label\na,1\nb\n", "line 3 has 1 cell, and the header 2"),
        ('text,label\n"a\n\nb",1\nc\n', "line 5 has 1 cell"),
        ('text,label\n"a"b,1\n', "line 2: a cell that begins with a quote must end with one"),
        ('text,label\n"he said \\"so\\"",1\n', r"a quote inside is written twice \(\"\"\)"),
        ('text,label\na,1\n"b,0\nc,1\n', "line 3: a cell that begins with a quote"),
        ("", "is empty: its first line must name the columns"),
        ("\n \n", "is empty"),
        ("text;label\na;b;1\n", "line 2 has 3 cells, .* divided by semicolons, because the header has no commas"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_line(text, said):
    with pytest.raises(UsageError, match=f"'it',? .*{said}|'it', {said}|'it' {said}"):
        read(text)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_known_by_the_header(mark):
    assert read(f"text{mark}label\na, b{mark}1\n") == {"text": ["a, b"], "label": ["1"]}
    assert read(f"sep={mark}\ntext{mark}label\na{mark}1\n") == {"text": ["a"], "label": ["1"]}
    assert read("text,label\na,1\n", "\t") == {"text": ["a"], "label": ["1"]}


def test_a_column_without_a_name_has_one_by_its_place():
    assert list(read(",text,\n0,a,\n")) == ["Unnamed: 0", "text", "Unnamed: 2"]


@pytest.mark.parametrize("inside", ["a\tb", "a\nb"])
def test_quotes_in_tsv_are_taken_off_where_the_cells_do_not_fit_the_header_with_them(inside):
    assert read_delimited(f'text\tlabel\n"{inside}"\tx\n', "\t", "'f'") == (["text", "label"], [[inside], ["x"]])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_is_counted_once_whatever_ends_it_also_inside_a_cell(end):
    with pytest.raises(UsageError, match="line 5 has 1 cell"):
        read_delimited(end.join(["text,label", f'"a{end}{end}b",x', "c"]) + end, ",", "'f'")


def test_a_row_of_empty_cells_is_a_row():
    assert read_delimited('text\n""\n"  "\n\nx\n', ",", "'f'") == (["text"], [["", "  ", "x"]])
    assert read_delimited("a\tb\n\t\nx\ty\n", "\t", "'f'") == (["a", "b"], [[None, "x"], [None, "y"]])
    assert read_delimited('a,b\n,\n"x",y\n', ",", "'f'") == (["a", "b"], [[None, "x"], [None, "y"]])
