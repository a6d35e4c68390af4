"""Transcripts are kept as they are, refused where they are not whole, and archived without a loss."""

import numpy as np
import pandas as pd
import pytest

from kdalign.errors import UsageError
from kdalign.runs import archive
from kdalign.runs.prediction_table import read_predictions
from kdalign.runs.written_texts import WrittenTexts, read_teacher_texts, write_texts

TEXTS = ["", "naïve café", "日本 語", "one two"]


def test_texts_are_packed_and_unpacked():
    assert WrittenTexts.of(TEXTS).texts == TEXTS
    assert WrittenTexts.of([""]).texts == [""]


def test_a_file_without_the_teachers_texts_says_so(tmp_path):
    file = tmp_path / "a.parquet"
    write_texts(file, WrittenTexts.of(TEXTS), [(text, "x") for text in TEXTS], None, "de")
    table = read_predictions(file, 4)
    assert (table.student.written, table.references[1], table.language) == (TEXTS, ["naïve café", "x"], "de")
    with pytest.raises(UsageError, match="does not keep the teacher's answers"):
        read_teacher_texts(file)
    with pytest.raises(UsageError, match="has texts of 4 examples, and the record counts 5"):
        read_predictions(file, 5)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"written": ["a"], "language": ["en"]}, "texts without their references"),
        ({"written": ["a"], "references": [[]], "language": ["en"]}, "row 1: 'references' does not hold a list"),
        ({"written": [1], "references": [["a"]], "language": ["en"]}, "column 'written' does not hold texts"),
    ],
)
def test_a_file_of_other_columns_is_refused(tmp_path, columns, line):
    file = tmp_path / "a.parquet"
    pd.DataFrame(columns).to_parquet(file)
    with pytest.raises(UsageError, match=line):
        read_predictions(file)


def test_an_archive_keeps_texts_and_lists_of_texts(tmp_path):
    for name, column in (("written", TEXTS), ("references", [["a"], ["b", "c"], ["d"], [""]])):
        values = archive._as_objects(column)
        packed = archive._packed(name, values, tmp_path)
        assert ("file" in packed) == (name == "references"), "all runs on the same data have the same references"
        assert archive._unpacked(packed, tmp_path).tolist() == column
    assert archive._unpacked(archive._packed("tokens", np.array([1, 2]), tmp_path), tmp_path).tolist() == [1, 2]
