"""A file that is read in parts has the rows, and the errors, of one that is read as a whole."""

import gzip
from contextlib import suppress
from itertools import chain

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdalign.data import table_parts
from kdalign.data.delimited import NotInParts, read_delimited, read_delimited_parts
from kdalign.data.tables import read_table
from kdalign.errors import UsageError


def in_parts(text, delimiter, size):
    """Columns of a text that is read a few lines at a time, as ``_text_parts`` divides it."""

    def parts():
        lines = text.split("\n")
        lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
        return ("".join(lines[start : start + size]) for start in range(0, len(lines), size))

    found = list(read_delimited_parts(parts, delimiter, "'it'"))
    [names] = {tuple(names) for names, _ in found}
    return list(names), [list(chain(*cells)) for cells in zip(*(columns for _, columns in found), strict=True)]


WRITTEN = st.text(st.sampled_from('ab,\t"\n\r'), max_size=40)
TIDY = st.lists(
    st.sampled_from(["a,b\n", '"a",b\r\n', '"a\n""b""",\n', ',"b"\n', "\n", '"",\n', 'a "b",c\n']), max_size=12
)
TABBED = st.lists(st.sampled_from(["a\tb\n", '"a"\tb\n', '"a\n""b"""\t\n', "\n", 'a "b"\tc\n', '"a\tb\n']), max_size=12)


@pytest.mark.parametrize("delimiter", [",", "\t"])
@given(text=st.one_of(WRITTEN, TIDY.map("".join), TABBED.map("".join)), size=st.integers(1, 4))
@example(text='x\ty\n"a"\tb\n', size=1)
@example(text="sep=;\nx;y\n", size=1)
def test_delimited_text_in_parts_is_that_of_the_whole_or_is_refused_as_the_whole(delimiter, text, size):
    text = "x,y\n".replace(",", delimiter) + text
    with suppress(NotInParts):
        try:
            found = in_parts(text, delimiter, size)
        except UsageError:  # of several mistakes, the first
            with pytest.raises(UsageError):
                read_delimited(text, delimiter, "'it'")
        else:
            assert found == read_delimited(text, delimiter, "'it'")


def tables(file, wanted=("text",)):
    return pd.concat(table_parts.table_parts(file, list(wanted)), ignore_index=True)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(table_parts, "BYTES", 50)
    monkeypatch.setattr(table_parts, "ROWS", 3)


def save(folder, kind, table):
    file = folder / f"it.{kind}"
    match kind:
        case "parquet":
            table.to_parquet(file, row_group_size=5)
        case "jsonl":
            table.to_json(file, orient="records", lines=True, force_ascii=False)
        case "txt":
            file.write_text("\n".join(table.text))
        case _:
            table.to_csv(file, index=False, sep="," if kind == "csv" else "\t")
    return file


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "txt"])
def test_every_format_gives_the_cells_that_it_gives_as_a_whole(few, tmp_path, kind):
    texts = [f'é "{number}", and\tmore' * (number % 3) for number in range(40)]
    file = save(tmp_path, kind, pd.DataFrame({"text": texts, "label": range(40)}))
    whole = read_table(file)
    found = tables(file, whole.columns)
    assert found.columns.tolist() == whole.columns.tolist()
    assert found.map(type).equals(whole.map(type))
    assert found.equals(whole)
    assert len(list(table_parts.table_parts(file, list(whole.columns)))) > 5


def test_of_a_parquet_file_only_wanted_columns_are_read(few, tmp_path):
    file = save(tmp_path, "parquet", pd.DataFrame({"text": ["a"] * 9, "label": range(9), "idx": range(9)}))
    assert tables(file, ["label", "text"]).columns.tolist() == ["label", "text"]
    assert tables(file, ["text", "other"]).columns.tolist() == ["text", "label", "idx"]


BAD = {
    "broken.csv": b"text,label\n" + b"fine,0\n" * 30 + b'"open,1\n' + b"fine,0\n" * 30,
    "wide.csv": b"text,label\n" + b"fine,0\n" * 30 + b"a,b,1\n" + b"fine,0\n" * 30,
    "wide.tsv": b"text\tlabel\n" + b'fi"ne\t0\n' * 30 + b"a\tb\t1\n" + b"fine\t0\n" * 30,
    "latin.csv": b"text,label\n" + b"fine,0\n" * 30 + b"caf\xe9,1\n" + b"fine,0\n" * 30,
    "list.jsonl": b'{"text": "fine"}\n' * 30 + b"[1]\n" + b'{"text": "fine"}\n' * 30,
    "cut.jsonl": b'{"text": "fine"}\n' * 30 + b'{"text": "fi\n' + b'{"text": "fine"}\n' * 30,
    "twice.jsonl": b'{"text": "fine"}\n' * 30 + b'{"text": "a", "text": "b"}\n',
    "no.parquet": b"text,label\n" + b"fine,0\n" * 30,
    "two.csv": b"text,text\n" + b"fine,0\n" * 30,
    "wide.txt": "text\n".encode("utf-16-le") * 30,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_in_the_middle_is_named_as_in_a_small_file(few, tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(UsageError) as whole:
        read_table(tmp_path / name)
    with pytest.raises(UsageError) as parts:
        tables(tmp_path / name)
    assert str(parts.value) == str(whole.value)


@pytest.mark.parametrize("lines", [["{}"] * 4, [f'{{"key {number}": 1}}' for number in range(200)]])
def test_rows_without_a_key_or_with_keys_of_their_own_are_left_to_the_whole(tmp_path, monkeypatch, lines):
    monkeypatch.setattr("kdalign.data.tables._MOST_CELLS", 100)
    (tmp_path / "it.jsonl").write_text("\n".join(lines))
    with pytest.raises(NotInParts):
        list(table_parts.table_parts(tmp_path / "it.jsonl"))


def test_text_in_utf_16_is_read_as_a_whole(few, tmp_path):
    (tmp_path / "it.csv").write_text("text,label\na,0\n", encoding="utf-16")
    with pytest.raises(NotInParts):
        tables(tmp_path / "it.csv")


def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_first_column(few, tmp_path):
    (tmp_path / "it.csv").write_text("text,label\n" + "a,0\n" * 40, encoding="utf-8-sig")
    assert tables(tmp_path / "it.csv").columns.tolist() == ["text", "label"]


def test_a_packed_line_is_unpacked_within_a_bound(few, tmp_path, monkeypatch):
    monkeypatch.setattr(table_parts, "LONGEST_PACKED_LINE", 2**20)
    bomb = tmp_path / "it.jsonl.gz"
    bomb.write_bytes(gzip.compress(b'{"text": "a"}\n' * 9 + b'{"text": "' + b" " * 2**25))
    assert bomb.stat().st_size < 50_000
    with pytest.raises(UsageError, match="line 10: more than 1,048,576 bytes in one line"):
        tables(bomb)
    (tmp_path / "it.jsonl").write_bytes(b'{"text": "' + b"a" * 2**21 + b'"}\n')
    assert [len(text) for text in tables(tmp_path / "it.jsonl").text] == [2**21], "a plain file is as large as it is"
