"""Rows of a training split: which splits are reported on, and what is in them."""

import pandas as pd
import pytest

from kdalign.data.tasks import DataSource, find_task
from kdalign.distillation.sequence_level.rows import read_train, reported_splits, rows_in_split, sources_of
from kdalign.errors import UsageError


def folder(tmp_path, **splits):
    for name, sources in splits.items():
        pd.DataFrame({"en": sources, "de": ["x"] * len(sources)}).to_parquet(tmp_path / f"{name}.parquet")
    return find_task("translation:en-de", str(tmp_path))


def test_reported_splits_are_the_tasks_and_those_that_are_named_so(tmp_path):
    names = "train dev test test2016 test_2017 validation_matched eval-small evaluation tests devices value training"
    task = folder(tmp_path, **{name: ["a"] for name in names.split()})
    assert reported_splits(task) == [
        "validation", "test", "eval-small", "evaluation", "test2016", "test_2017", "validation_matched",
    ]  # fmt: skip
    pd.DataFrame({"other": ["a"]}).to_parquet(tmp_path / "test2018.parquet")
    assert "test2018" not in reported_splits(task)


def test_a_row_is_in_a_split_if_its_source_is_word_for_word_in_lower_case(tmp_path):
    task = folder(tmp_path, train=["A  cat", "a cat sat", "a\tdog", "a bird"], test2016=["a cat", "A DOG ", "bird"])
    train = read_train(task)
    assert rows_in_split(train, sources_of(task, "test2016")) == {0, 2}
    left = train.without("also in test2016", {0, 2})
    assert ([row.number for row in left.rows], left.left_out) == ([1, 3], (("also in test2016", 2),))
    assert left.with_answer(left.rows[1], "neu") == {"en": "a bird", "de": "neu"}


def test_a_limit_counts_the_first_rows_of_the_split(tmp_path):
    task = folder(tmp_path, train=["a", "b", "c"], validation=["d"])
    assert [row.prompt for row in read_train(task, 2).rows] == ["a", "b"]
    assert read_train(task, 2).fingerprint != read_train(task).fingerprint


def test_a_target_of_another_name_than_any_split_has_is_refused(tmp_path):
    task = folder(tmp_path, train=["a"], validation=["b"])
    other = find_task("translation:en-fr", str(tmp_path))
    assert other.source == DataSource(folder=tmp_path) == task.source
    with pytest.raises(UsageError, match=r"task .translation-en-fr. needs column .fr., which .* lacks"):
        read_train(other)
