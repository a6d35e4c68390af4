"""Kept answers are read and checked: a file may be a stranger's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdalign.errors import UsageError
from kdalign.runs import prediction_table
from kdalign.runs.prediction_table import read_predictions

CLASSES = {
    "prediction": [0, 1, 1],
    "label": [0, 1, 0],
    "teacher": [0, 1, 1],
    "logit/bad": [0.5, -0.5, 0.0],
    "logit/good": [-0.5, 0.5, 1.0],
}
TOKENS = {"nll": [1.0, 2.0], "tokens": [1, 2], "best": [np.array([4]), np.array([5, 6])]}


def _kept(folder: Path, columns: dict[str, object]) -> Path:
    file = folder / "validation.parquet"
    pd.DataFrame(columns).to_parquet(file, index=False)
    return file


@pytest.mark.parametrize("columns", [CLASSES, TOKENS, {"prediction": [0.5], "label": [1.0], "logit/score": [0.5]}])
def test_answers_that_a_run_keeps_are_read(tmp_path: Path, columns: dict[str, object]) -> None:
    assert list(read_predictions(_kept(tmp_path, columns)).frame.columns) == list(columns)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prediction": ["x"] * 3}, "column 'prediction' does not hold numbers"),
        ({"label": [None] * 3}, "column 'label' does not hold numbers"),
        ({"prediction": [0, 1, 2]}, "'prediction' holds other numbers than those of 2 classes"),
        ({"agreed": [1, 1, 1]}, "column 'agreed' counts tokens, and there is no column 'tokens'"),
        ({"teacher": [0, -1, 1]}, "'teacher' holds other numbers than those of 2 classes"),
        ({"label": [0.0, np.nan, 1.0]}, "'label' holds other numbers than those of 2 classes"),
        ({"logit/good": [True, False, True]}, "column 'logit/good' does not hold numbers"),
    ],
)
def test_classes_that_are_none_are_refused_by_their_column(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        read_predictions(_kept(tmp_path, CLASSES | changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": [1, -2]}, "'tokens' does not count tokens"),
        ({"agreed": [1, 3]}, "'agreed' does not count some of the tokens"),
        ({"agreed": [-1, 0]}, "'agreed' does not count some of the tokens"),
        ({"tokens": [1, 3]}, "row 2: 'best' does not hold its 3 tokens"),
        ({"best": ["a", "b"]}, "row 1: 'best' does not hold its 1 tokens"),
        ({"nll": ["a", "b"]}, "column 'nll' does not hold numbers"),
    ],
)
def test_likelihoods_that_are_none_are_refused_by_their_column(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        read_predictions(_kept(tmp_path, TOKENS | changed))


def test_answers_to_other_examples_than_are_counted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="answers to 3 examples, and the record counts 4"):
        read_predictions(_kept(tmp_path, CLASSES), n=4)


def test_answers_without_what_is_right_are_refused_where_they_were_scored(tmp_path: Path) -> None:
    file = _kept(tmp_path, {name: values for name, values in CLASSES.items() if name != "label"})
    assert len(read_predictions(file)) == 3
    with pytest.raises(UsageError, match="has no column 'label'"):
        read_predictions(file, n=3)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "validation.parquet"
    file.write_bytes(b"PAR1PAR1")
    with pytest.raises(UsageError, match=r"validation\.parquet' is not a parquet file"):
        read_predictions(file)


def test_a_file_that_unpacks_to_very_many_numbers_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _kept(tmp_path, {"prediction": np.zeros(1000, dtype=np.int64)})
    monkeypatch.setattr(prediction_table, "MOST_VALUES", 999)
    monkeypatch.setattr(prediction_table, "read_table", lambda _file: pytest.fail("it was read"))
    with pytest.raises(UsageError, match="holds 1,000 numbers; at most 999 are read"):
        read_predictions(file)
