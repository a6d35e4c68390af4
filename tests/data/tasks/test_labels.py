"""Labels: names, numbers, numbers written as text, and truth values, each once with the row of what is none."""

import json
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdalign.data.tasks import ClassificationTask, DataSource, find_task, load_examples
from kdalign.errors import UsageError


def put(folder, labels, kind="jsonl", split="train", **columns):
    """Write a split with these labels, with texts of their number, and return the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = columns or {"sentence": [f"text {number}" for number in range(len(labels))]}
    table = columns | {"label": labels}
    file = folder / f"{split}.{kind}"
    if kind == "jsonl":
        rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        pd.DataFrame(table).to_csv(file, index=False)
    else:
        pq.write_table(pa.table(table), file)
    return str(folder)


def sst2(folder):
    return load_examples(find_task("sst2", folder), "train").labels


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "labels",
    [
        *[[1, 0, 1], ["1", "0", "1"], ["positive", "negative", "Positive"], [1.0, 0.0, 1.0], ["1.0", "0.0", "1"]],
        *[[" 1", "0 ", "+1"], [True, False, True], ["True", "False", "true"]],
    ],
)
def test_a_label_is_the_same_however_it_is_written(tmp_path, kind, labels):
    assert sst2(put(tmp_path, labels, kind)).tolist() == [1, 0, 1]


def test_decimals_are_numbers(tmp_path):
    assert sst2(put(tmp_path, [Decimal("1.00"), Decimal("0.00")], "parquet")).tolist() == [1, 0]


PAIRS = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("labels", [[2.5, 1.0], ["2.5", "1.0"], [" 2.5", "1"], ["25e-1", "+1"]])
def test_a_score_is_the_same_however_it_is_written(tmp_path, kind, labels):
    folder = put(tmp_path, labels, kind, **PAIRS)
    assert load_examples(find_task("stsb", folder), "train").labels.tolist() == [2.5, 1.0]
    put(tmp_path, labels, kind, "validation", **PAIRS)
    (tmp_path / f"train.{kind}").unlink()
    (tmp_path / "train.txt").write_text("a text\n")
    task = find_task("embedding", folder)
    assert task.scored.columns == ("sentence1", "sentence2")
    assert load_examples(task.scored, "validation").labels.tolist() == [2.5, 1.0]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([2.5, "nan"], "row 1 has the text 'nan' in column 'label'"),
        ([2.5, "high"], "row 1 has the text 'high'"),
        (["2.5", "high"], "row 1 has the text 'high' in column 'label', where a number is expected"),
        (["2.5", "inf"], "row 1 has the text 'inf' in column 'label', where a finite number is expected"),
        ([2.5, float("inf")], "row 1 has the number inf in column 'label', where a finite"),
        (["2.5", "3,5"], "row 1 has the text '3,5' .*write its decimals after a point"),
        ([True, False], "row 0 has the truth value true"),
        ([2.5, None], "row 1 has no label in 'label'"),
    ],
)
def test_a_score_that_is_none_is_named_with_its_row(tmp_path, labels, said):
    with pytest.raises(UsageError, match=said):
        load_examples(find_task("stsb", put(tmp_path, labels, **PAIRS)), "train")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, "0"], "row 1 has the text '0' in column 'label', and row 0 the number 1: labels are all text, or all num"),
        (["positive", 0], "row 1 has the number 0 in column 'label', and row 0 the text 'positive'"),
        ([1, True], "row 1 has the truth value true .* and row 0 the number 1"),
        ([1, [0]], r"row 1 has a list \(\[0\]\) in column 'label', where a label is expected"),
        ([1, {"a": 0}], "row 1 has an object"),
        ([1, ""], "row 1 has no label in 'label'"),
        (["1", "  "], "row 1 has no label in 'label'"),
        ([1, 2, 2], r"label 2 in row 1 .*\(accepted: 0 negative, 1 positive\); these labels are counted from 1"),
        (["1", "2"], "label 2 in row 1 .*these labels are counted from 1, and classes from 0"),
        ([0, 2000000000], "label 2e.09 in row 1"),
        (["1", "-1"], "label -1 in row 1"),
        (["1", " -1"], "label -1 in row 1"),
        (["0", "maybe"], "label in row 1 .*'maybe'"),
        ([0, 10**400], "row 1 has the number 1000.* where a finite number"),
    ],
)
def test_a_label_that_is_none_is_named_with_its_row(tmp_path, labels, said):
    with pytest.raises(UsageError, match=said):
        sst2(put(tmp_path, labels))


@pytest.mark.parametrize("labels", [[-1, -1], ["-1", "-1"], [" -1", "-1.0"], [None, None], ["", " "]])
def test_labels_that_are_hidden_are_none(tmp_path, labels):
    assert sst2(put(tmp_path, labels)) is None


def test_a_label_column_of_other_letters_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("sentence, Label\na,1\n")
    with pytest.raises(UsageError, match="column ' Label' must be called 'label'"):
        sst2(str(tmp_path))


# Worked out from the data


def work_out(folder, labels, kind="jsonl", **columns) -> ClassificationTask:
    for split in ("train", "validation"):
        put(folder, labels, kind, split, **columns)
    return find_task("classification", str(folder))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_classes_are_the_same_from_numbers_and_from_their_text(tmp_path, kind):
    for name, labels in (
        ("numbers", [0, 1, 2, 1]),
        ("text", ["0", "1", "2", "1"]),
        ("blank", [" 0", "1.0", "+2", "1"]),
    ):
        task = work_out(tmp_path / name, labels, kind)
        assert (task.columns, task.labels) == (("sentence",), ("LABEL_0", "LABEL_1", "LABEL_2"))
        assert "3 classes (0 to 2) in label" in task.found
        assert not task.order_unknown
        assert load_examples(task, "train").labels.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("labels", [[True, False, True], ["True", "False", "True"]])
def test_truth_values_are_two_classes_in_their_order(tmp_path, labels):
    task = work_out(tmp_path, labels)
    assert (task.labels, task.order_unknown) == (("false", "true"), False)
    assert load_examples(task, "train").labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("word", ["None", "null", "NA", "nan", "N/A"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_words_that_stand_for_nothing_elsewhere_are_labels_like_any_other(tmp_path, word, kind):
    task = work_out(tmp_path, [word, "some", word], kind)
    assert set(task.labels) == {word, "some"}
    assert load_examples(task, "train").labels.tolist() == [task.labels.index(name) for name in (word, "some", word)]


def test_a_class_that_train_lacks_is_said(tmp_path):
    assert "4 classes (0 to 3, none of 1, 2)" in work_out(tmp_path, [0, 3, 0, 3]).found


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1], "has one row, from which no task can be inferred"),
        (
            [2, 1, 2, 1],
            "labels from 1 to 2 in 'label' are not classes counted from 0, so they cannot be inferred; sub",
        ),
        (["2", "1"], "labels from 1 to 2 in 'label' are not classes counted from 0"),
        ([5, 9], "labels from 5 to 9 .* subtract 5, or name them in a task file"),
        ([0, 2000000000], "labels from 0 to 2e.09"),
        ([1, "0"], "row 1 has the text '0' in column 'label', and row 0 the number 1"),
        (
            ["good", "bad", "good "],
            r"labels 'good' \(row 0\) and 'good ' \(row 2\) differ in spaces, case or separators",
        ),
        (["good", "bad", "Good"], "'good' .row 0. and 'Good' .row 2. differ"),
        ([0.5, float("inf")], "row 1 has the number inf"),
    ],
)
def test_labels_that_are_no_classes_are_named_with_their_cause(tmp_path, labels, said):
    with pytest.raises(UsageError, match=said):
        work_out(tmp_path, labels)


def test_a_number_among_texts_is_named_with_its_row(tmp_path):
    with pytest.raises(UsageError, match="row 1 has the number 12345 in column 'text', whose other rows have text"):
        work_out(tmp_path, [1, 0, 0], text=["a", 12345, "b"])


@pytest.mark.parametrize(
    "lines",
    [
        "a good film,1\na bad film,0\na fine dog,1\n",
        "a good film,1\na bad film,0\na fine dog,1\na dull cat,0\na cat,1\n",
        "a good film,good\na bad film,bad\na fine dog,good\na dull cat,bad\na fine cat we saw with our friends.,good\n",
    ],
)
def test_a_file_without_a_header_is_known(tmp_path, lines):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text(lines)
    with pytest.raises(UsageError, match=r"header such as text,label|as if a header were missing"):
        find_task("classification", str(tmp_path))
    with pytest.raises(UsageError, match="needs column 'sentence'"):
        load_examples(find_task("sst2", str(tmp_path)), "train")


def test_a_single_column_without_a_header_loses_no_document(tmp_path):
    (tmp_path / "train.csv").write_text("once upon a time there was a dog\nand a cat\n")
    with pytest.raises(UsageError, match="no column has a name; the first line looks like a row"):
        find_task("lm", str(tmp_path))


def test_semicolons_divide_where_the_header_has_them(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text;label\na good film, really;1\na bad film;0\n")
    task = find_task("classification", str(tmp_path))
    examples = load_examples(task, "train")
    assert (examples.texts, examples.labels.tolist()) == ((("a good film, really", "a bad film"),), [1, 0])


def test_two_columns_that_could_be_the_label_by_their_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="which column is the label, 'Label' or 'label'"):
        work_out(tmp_path, [0, 1, 0], sentence=["a", "b", "c"], Label=[1, 0, 1])


@pytest.mark.parametrize(
    ("names", "labels", "places"),
    [
        (("-1", "1"), [-1, -1], [0, 0]),  # a class, though it stands for "no label" where it is none
        (("-1", "1"), ["-1", "1"], [0, 1]),
        (("10", "other"), [1, 0], [1, 0]),  # not all names are numbers: places
        (("3", "1"), [1, 3], [1, 0]),
    ],
)
def test_numbers_are_names_where_all_names_are_numbers_and_places_elsewhere(tmp_path, names, labels, places):
    source = DataSource(Path(put(tmp_path, labels)))
    task = ClassificationTask("own", ("sentence",), names, ("accuracy",), source)
    assert load_examples(task, "train").labels.tolist() == places
