"""Files as tables: what is read of each format, and what is no table and is named with its row."""

import json
import os
from datetime import datetime
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdalign.data.tables import read_table
from kdalign.errors import UsageError

ROWS = {
    "csv": "text,label\ngood,1\n",
    "tsv": "text\tlabel\ngood\t1\n",
    "jsonl": '{"text": "good", "label": "1"}\n',
    "txt": "text\ngood\n",
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, kind, encoding):
    file = tmp_path / f"it.{kind}"
    file.write_bytes(ROWS[kind].encode(encoding))
    found = read_table(file)
    assert found.columns.tolist() == (["text"] if kind == "txt" else ["text", "label"])
    assert found.text.tolist() == (["text", "good"] if kind == "txt" else ["good"])


@pytest.mark.parametrize("kind", ROWS)
def test_another_encoding_is_named_with_its_line(tmp_path, kind):
    file = tmp_path / f"it.{kind}"
    file.write_bytes(ROWS[kind].replace("good", "schön").encode("latin-1"))
    with pytest.raises(UsageError, match=rf"it\.{kind}', line {1 if kind == 'jsonl' else 2}: not UTF-8 .*save it as"):
        read_table(file)
    file.write_bytes(ROWS[kind].encode("utf-16-le"))
    with pytest.raises(UsageError, match="UTF-16 without a byte order mark"):
        read_table(file)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_line_ends_alone(tmp_path, end):
    (tmp_path / "it.txt").write_bytes(f"a\u2028b\x0cc{end}{end}d\x85e".encode())
    assert read_table(tmp_path / "it.txt").text.tolist() == ["a\u2028b\x0cc", "", "d\x85e"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("a\u2028b", "c\x85d")]
    (tmp_path / "it.jsonl").write_bytes(end.join(lines).encode())
    assert read_table(tmp_path / "it.jsonl").text.tolist() == ["a\u2028b", "c\x85d"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a", "label": 1, "label": 0}', "line 2: key 'label' is given twice"),
        ("[1, 2]", "line 2 is not an object with keys"),
        ('[{"text": "a"},', "line 2: .*a line is an object, and this file begins a list"),
        ("[" * 100_000, "line 2: nested too deeply"),
        ('{"n": ' + "9" * 5000 + "}", "line 2: .*digit"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line, said):
    (tmp_path / "it.jsonl").write_text(f'{{"text": "b"}}\n{line}\n')
    with pytest.raises(UsageError, match=said):
        read_table(tmp_path / "it.jsonl")


def test_a_whole_number_beside_nothing_stays_whole(tmp_path):
    (tmp_path / "it.jsonl").write_text('{"label": 1}\n{"text": "a"}\n')
    assert read_table(tmp_path / "it.jsonl").label.tolist() == [1, None]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, kind):
    file = tmp_path / f"it.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table([["a"], [1], [0]], names=["text", "label", "label"]), file)
    else:
        file.write_text("text,label,label\na,1,0\n".replace(",", "\t" if kind == "tsv" else ","))
    with pytest.raises(UsageError, match=rf"it\.{kind}' has 2 columns named 'label'"):
        read_table(file)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None]),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", None]).dictionary_encode(),
        pa.array(["a", None], pa.string_view()),
    ],
)
def test_text_is_text_in_whichever_type_it_lies(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "it.parquet")
    assert read_table(tmp_path / "it.parquet").text.tolist() == ["a", None]


def test_text_of_parquet_that_is_not_utf_8_is_named_with_its_row(tmp_path):
    broken = pa.array([b"good", b"sch\xf6n"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "it.parquet")
    with pytest.raises(UsageError, match="row 1 has bytes in column 'text' that are not UTF-8"):
        read_table(tmp_path / "it.parquet")


def test_an_index_that_pandas_kept_is_a_column_where_it_has_a_name(tmp_path):
    table = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    table[table.label == 1].to_parquet(tmp_path / "some.parquet")
    assert read_table(tmp_path / "some.parquet").to_dict("list") == {"text": ["b"], "label": [1]}
    table.set_index("text").to_parquet(tmp_path / "it.parquet")
    assert sorted(read_table(tmp_path / "it.parquet").columns) == ["label", "text"]


def test_a_folders_name_adds_no_column(tmp_path):
    (tmp_path / "lr=1").mkdir()
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "lr=1" / "it.parquet")
    assert read_table(tmp_path / "lr=1" / "it.parquet").columns.tolist() == ["text"]


def test_times_lists_and_decimals_are_read_as_what_they_are(tmp_path):
    columns = {"when": [datetime(1, 1, 1)], "list": [["a"]], "price": [Decimal("1.50")], "bytes": [b"\xff"]}
    pq.write_table(pa.table(columns), tmp_path / "it.parquet")
    found = read_table(tmp_path / "it.parquet")
    assert [type(found[name][0]).__name__ for name in ("list", "price", "bytes")] == ["ndarray", "Decimal", "bytes"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, kind):
    os.mkfifo(tmp_path / f"it.{kind}")
    with pytest.raises(UsageError, match="not a regular file but a pipe"):
        read_table(tmp_path / f"it.{kind}")


def test_rows_that_share_no_key_are_refused_before_they_fill_the_memory(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(f'{{"k{row}": 1}}\n' for row in range(4000)))
    with pytest.raises(UsageError, match="has 4,000 different keys in 4,000 rows"):
        read_table(file)
    file.write_text("".join(f'{{"text": "a", "k{row}": 1}}\n' for row in range(1000)))
    assert read_table(file).shape == (1000, 1001)
