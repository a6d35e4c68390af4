"""Tasks: what GLUE's columns and labels mean, how data is read and refused, and what is held out of train."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data.tasks import (
    GLUE,
    ClassificationTask,
    DataSource,
    Examples,
    find_task,
    hold_out,
    load_examples,
    write_submission,
)
from kdalign.data.tasks.labels import label_order
from kdalign.errors import UsageError

PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

# Wang et al. 2018, table 1, and the features of nyu-mll/glue.
NINE = {
    "cola": (("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": (("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": (PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "stsb": (PAIR, (), ("pearson", "spearman")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
    "qnli": (("question", "sentence"), ENTAILMENT, ("accuracy",)),
    "rte": (PAIR, ENTAILMENT, ("accuracy",)),
    "wnli": (PAIR, ("not_entailment", "entailment"), ("accuracy",)),
}


def line_of(error: pytest.ExceptionInfo[UsageError]) -> str:
    line = str(error.value)
    assert "\n" not in line, "an error is one line"
    return line


def write(folder, split: str = "train", kind: str = "parquet", **columns):
    """Write a split in one of the formats and return the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    table, file = pd.DataFrame(columns), folder / f"{split}.{kind}"
    if kind == "parquet":
        table.to_parquet(file)
    elif kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in table.to_dict("records")]
        file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    else:
        # A TSV as GLUE has them holds its text as it is: no quotes around, none doubled.
        dialect = {"sep": "\t", "quoting": 3} if kind == "tsv" else {}
        table.to_csv(file, index=False, **dialect)
    return str(folder)


def load(folder: str, task: str = "sst2", split: str = "train") -> Examples:
    return load_examples(find_task(task, folder), split)


# The nine tasks of GLUE


def test_there_are_nine_glue_tasks():
    assert set(GLUE) == set(NINE)


@pytest.mark.parametrize("name", NINE)
def test_a_glue_task_has_its_published_columns_labels_and_metrics(name):
    task = find_task(name)
    assert (task.columns, task.labels, task.metrics) == NINE[name]
    assert (task.source, task.label) == (DataSource(dataset="nyu-mll/glue", config=name), "label")
    assert (task.regression, task.outputs) == (name == "stsb", {"stsb": 1, "mnli": 3}.get(name, 2))
    both = ("validation_matched", "validation_mismatched")
    assert task.evaluation == (both if name == "mnli" else ("validation",))
    assert len(task.test) == len(task.submission) == len(task.evaluation)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UsageError, match="unknown task 'sst-2'; did you mean 'sst2'"):
        find_task("sst-2")
    with pytest.raises(UsageError, match="did you mean 'classification'"):
        find_task("clasification")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"folder": ".", "dataset": "x"}, "--data or --dataset, not both"),
        ({"config": "x"}, "--config goes with --dataset"),
        ({"folder": "no/such/folder"}, "no data folder 'no/such/folder'"),
    ],
)
def test_data_given_twice_or_not_at_all_is_refused(where, said):
    with pytest.raises(UsageError, match=said):
        find_task("sst2", **where)
    with pytest.raises(UsageError):
        find_task("classification")


def test_a_folder_may_hold_one_folder_per_task(tmp_path):
    write(tmp_path / "sst2", sentence=["good"], label=[1])
    write(tmp_path / "cola", sentence=["bad", "worse"], label=[1, 0])
    assert len(load(str(tmp_path), "sst2")) == 1
    assert len(load(str(tmp_path), "cola")) == 2
    assert len(load(str(tmp_path / "cola"), "cola")) == 2


ROWS = {
    "sst2": {"train": 67_349, "validation": 872, "test": 1_821},
    "cola": {"train": 8_551, "validation": 1_043, "test": 1_063},
    "mrpc": {"train": 3_668, "validation": 408, "test": 1_725},
    "stsb": {"train": 5_749, "validation": 1_500, "test": 1_379},
    "rte": {"train": 2_490, "validation": 277, "test": 3_000},
    "wnli": {"train": 635, "validation": 71, "test": 146},
    "qnli": {"train": 19_476, "validation": 5_463},  # the training splits of these three are subsets
    "mnli": {"train": 9_999, "validation_matched": 9_815},
    "qqp": {"train": 28_868},
}


@pytest.mark.parametrize("name", ROWS)
def test_every_glue_split_at_hand_loads_with_its_rows(name, shared):
    task = find_task(name, str(shared / "data" / "glue"))
    for split, rows in ROWS[name].items():
        examples = load_examples(task, split)
        assert len(examples) == rows
        assert [len(column) for column in examples.texts] == [rows] * len(task.columns)
        if split == "test" and name != "mrpc":
            assert examples.labels is None, "the leaderboard keeps them"
        elif task.regression:
            assert (examples.labels.min(), examples.labels.max()) == (0, 5)
        else:
            assert set(examples.labels.tolist()) == set(range(task.outputs))


# Reading files

TEXTS = ['"so, so" he said', "été — naïve", "NA", "null", "007", "1e5", "two  spaces", "it's; a|b \\n", "#5", "True"]
LABELS = [0, 1, 1, 0, 1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_every_format_reads_the_same(tmp_path, kind):
    examples = load(write(tmp_path, kind=kind, sentence=TEXTS, label=LABELS))
    assert examples.texts == (tuple(TEXTS),)
    assert examples.labels.tolist() == LABELS
    assert examples.labels.dtype == np.int64


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_scores_are_read_to_the_last_digit_in_every_format(tmp_path, kind):
    scores = np.random.default_rng(0).uniform(0, 5, 200)
    texts = ["a"] * 200
    examples = load(write(tmp_path, kind=kind, sentence1=texts, sentence2=texts, label=scores), "stsb")
    assert examples.labels.tolist() == scores.tolist()


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_text_that_looks_like_numbers_stays_text(tmp_path, kind):
    examples = load(write(tmp_path, kind=kind, sentence=["007", "1.50", "1e5"], label=[0, 1, 0]))
    assert examples.texts == (("007", "1.50", "1e5"),)


def test_a_line_separator_inside_a_json_string_ends_no_line(tmp_path):
    examples = load(write(tmp_path, kind="jsonl", sentence=["one\u2028still one", "two"], label=[0, 1]))
    assert examples.texts == (("one\u2028still one", "two"),)


@pytest.mark.parametrize("alias", ["valid", "dev", "val"])
def test_validation_goes_by_its_other_names(tmp_path, alias):
    folder = write(tmp_path, alias, sentence=["good"], label=[1])
    assert load(folder, split="validation").labels.tolist() == [1]


def test_examples_taken_keep_text_and_label_together():
    examples = Examples("train", (("a", "b", "c"), ("x", "y", "z")), np.array([0, 1, 2]))
    taken = examples.take([2, 0])
    assert taken.texts == (("c", "a"), ("z", "x"))
    assert taken.labels.tolist() == [2, 0]


def test_a_fingerprint_changes_with_any_text_label_or_order():
    base = Examples("train", (("a", "b"),), np.array([0, 1]))
    others = [
        Examples("train", (("a", "c"),), np.array([0, 1])),
        Examples("train", (("a", "b"),), np.array([1, 1])),
        Examples("train", (("ab", ""),), np.array([0, 1])),
        Examples("train", (("a", "b"),), None),
        base.take([1, 0]),
    ]
    assert len({each.fingerprint() for each in (base, *others)}) == 6
    assert Examples("test", (("a", "b"),), np.array([0, 1])).fingerprint() == base.fingerprint()


def test_a_fingerprint_is_the_hash_of_texts_that_zero_bytes_end_and_of_labels():
    labels = np.array([0, 1])
    expected = hashlib.sha256(b"a\0b\0" + labels.tobytes()).hexdigest()[:16]
    assert Examples("train", (("a", "b"),), labels).fingerprint() == expected, "archives hold it"


def test_texts_with_zero_bytes_are_told_from_those_that_are_cut_there():
    columns = [(("a", "b", "c"),), (("a\0b", "c"),), (("a", "b\0c"),), (("a\0b\0c",),), (("a\0b",), ("c",))]
    referenced = [("a", "b\0c"), ("a\0b", "c"), ("a", "b", "c")]
    found = [Examples("train", texts, None) for texts in columns]
    found += [Examples("train", (("",),), None, references=(known,)) for known in referenced]
    assert len({each.fingerprint() for each in found}) == len(found)


def test_a_label_of_minus_one_everywhere_means_no_labels(tmp_path):
    assert load(write(tmp_path / "a", "test", sentence=["x", "y"], label=[-1, -1]), split="test").labels is None
    assert load(write(tmp_path / "b", "test", sentence=["x", "y"], label=["-1", "-1"]), split="test").labels is None
    assert load(write(tmp_path / "c", "test", sentence=["x", "y"]), split="test").labels is None
    texts = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    assert load(write(tmp_path / "d", "test", **texts, label=[-1.0, -1.0]), "stsb", "test").labels is None


def test_a_label_of_minus_one_among_others_is_refused(tmp_path):
    with pytest.raises(UsageError, match="label -1 in row 1"):
        load(write(tmp_path, sentence=["x", "y", "z"], label=[1, -1, 0]))


def test_label_names_match_whatever_their_case_and_separators(tmp_path):
    names = ["Not_Entailment", "ENTAILMENT", "not-entailment", "notEntailment", "not entailment", " entailment"]
    folder = write(tmp_path, sentence1=["a"] * 6, sentence2=["b"] * 6, label=names)
    assert load(folder, "rte").labels.tolist() == [1, 0, 1, 1, 1, 0]
    assert load(folder, "wnli").labels.tolist() == [0, 1, 0, 0, 0, 1], "WNLI counts them the other way round"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 0, 2], r"label 2 in row 3 is not one of task 'sst2' \(accepted: 0 negative, 1 positive\)"),
        ([0.5, 1.0, 0.0, 1.0], r"label 0\.5 in row 0"),
        ([1.0, float("inf"), 0.0, 1.0], "row 1 has the number inf in column 'label'"),
        ([1.0, 0.0, None, 1.0], "row 2 has no label in 'label'"),
        (["positive", "negativ", "positive", "x"], r"label in row 1 .*'negativ'; did you mean 'negative'"),
    ],
)
def test_a_label_out_of_range_is_refused_and_its_row_named(tmp_path, labels, said):
    with pytest.raises(UsageError, match=said) as error:
        load(write(tmp_path, sentence=list("abcd"), label=labels))
    assert line_of(error)


def test_a_score_that_is_a_word_is_refused(tmp_path):
    with pytest.raises(UsageError, match="row 0 has the text 'high' in column 'label', where a number is"):
        load(write(tmp_path, sentence1=["a"], sentence2=["b"], label=["high"]), "stsb")


def test_a_missing_column_names_the_nearest_and_all_there_are(tmp_path):
    folder = write(tmp_path, sentences=["a"], label=[0])
    with pytest.raises(UsageError, match=r"needs column 'sentence'.*did you mean 'sentences'.*has: sentences, label"):
        load(folder)


def test_a_missing_split_names_the_nearest_and_all_there_are(tmp_path):
    folder = write(tmp_path, "trian", sentence=["a"], label=[0])
    with pytest.raises(UsageError, match=r"no split 'train' in .*did you mean 'trian'\? \(it has: trian\)"):
        load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no file named SPLIT\.parquet\|csv\|tsv\|jsonl"):
        load(str(tmp_path / "empty"))


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_a_split_without_rows_is_refused(tmp_path, kind):
    folder = write(tmp_path, kind=kind, sentence=[], label=[])
    with pytest.raises(UsageError, match="split 'train' has no rows"):
        load(folder)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_row_without_text_is_refused_and_named(tmp_path, kind):
    with pytest.raises(UsageError, match="row 1 has no text in column 'sentence'"):
        load(write(tmp_path, kind=kind, sentence=["a", None, "c"], label=[0, 1, 0]))


CSV = b"sentence,label\ngood,1\n"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("parquet", CSV),  # a CSV by another name
        ("parquet", b""),
        ("parquet", b"PAR1" + bytes(range(80)) + b"PAR1"),
        ("csv", b"\x00\x01\xff\xfe" * 30),
        ("csv", b""),
        ("csv", b"sentence,label\ngood,1\none, two,1\n"),
        ("csv", b"sentence,label\none, two,1\nthree, four,0\n"),  # more fields than the header in every row
        ("tsv", b"\xff\xfe\x00"),
        ("jsonl", CSV),
        ("jsonl", b'{"sentence": "good", "label": 1}\n{"sentence": "ba'),
        ("jsonl", b'[{"sentence": "good", "label": 1}]'),
        ("jsonl", b"\x00\xff"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, kind, content):
    (tmp_path / f"train.{kind}").write_bytes(content)
    with pytest.raises(UsageError, match=f"train.{kind}'(,| is) .") as error:
        load(str(tmp_path))
    assert line_of(error)


def test_code_beside_data_is_not_run(tmp_path):
    folder = write(tmp_path / "sst2", sentence=["good", "bad"], label=[1, 0])
    for name in ("sst2", "train", "__init__"):
        (tmp_path / "sst2" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert len(load(folder)) == 2
    assert not (tmp_path / "ran").exists()


def test_the_broken_line_of_a_json_file_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "label": 1}\n\n{"sentence": }\n')
    with pytest.raises(UsageError, match="line 3"):
        load(str(tmp_path))


def test_a_truncated_parquet_file_is_refused(tmp_path):
    folder = write(tmp_path, sentence=["good"] * 50, label=[1] * 50)
    file = tmp_path / "train.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UsageError, match="is not a parquet file"):
        load(folder)


# Task files

TEN_LINES = """\
name: tickets
columns: [subject, body]
label: queue
labels: [billing, no, yes]
metrics: [macro_f1, accuracy]
data: files
train: train
evaluation: [held_out]
test: []

"""


def test_ten_lines_of_yaml_make_a_task(tmp_path):
    assert len(TEN_LINES.splitlines()) == 10
    (tmp_path / "tickets.yaml").write_text(TEN_LINES)
    columns = {"subject": ["a", "b", "c"], "body": ["x", "y", "z"]}
    for split in ("train", "held_out"):
        write(tmp_path / "files", split, **columns, queue=["no", "Billing", "yes"])
    task = find_task(str(tmp_path / "tickets.yaml"))
    assert (task.name, task.columns, task.metrics) == ("tickets", ("subject", "body"), ("macro_f1", "accuracy"))
    assert task.labels == ("billing", "no", "yes"), "a label called no is no boolean"
    assert task.source.folder == tmp_path / "files", "a folder is looked for beside the file"
    examples = load_examples(task, "held_out")
    assert examples.texts == (("a", "b", "c"), ("x", "y", "z"))
    assert examples.labels.tolist() == [1, 0, 2]


def test_a_task_file_needs_columns_alone_and_may_get_its_data_from_outside(tmp_path):
    (tmp_path / "mine.yml").write_text("columns: text\n")
    task = find_task(str(tmp_path / "mine.yml"), write(tmp_path / "data", text=["a"], label=[0.5]))
    assert (task.name, task.columns, task.labels, task.metrics) == ("mine", ("text",), (), ("pearson", "spearman"))
    assert load_examples(task, "train").labels.tolist() == [0.5]
    (tmp_path / "two.yaml").write_text("columns: text\nlabels: [a, b]\ndataset: org/name\nconfig: small\n")
    task = find_task(str(tmp_path / "two.yaml"))
    assert (task.metrics, task.source) == (("accuracy",), DataSource(dataset="org/name", config="small"))


@pytest.mark.parametrize(
    ("labels", "given", "numbers"),
    [
        ("[1, 2, 3, 4, 5]", [5, 1, 3], [4, 0, 2]),  # stars
        ("[-1, 1]", [1, -1, -1], [1, 0, 0]),
        ("[0, 1]", [1, 0, 1], [1, 0, 1]),
        ("[bad, good]", [1, 0, 1], [1, 0, 1]),
    ],
)
def test_labels_named_by_numbers_are_those_numbers(tmp_path, labels, given, numbers):
    (tmp_path / "mine.yaml").write_text(f"columns: text\nlabels: {labels}\n")
    folder = write(tmp_path / "data", text=["a", "b", "c"], label=given)
    assert load(folder, str(tmp_path / "mine.yaml")).labels.tolist() == numbers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("columns: text\ndata: .\nlables: [a, b]\n", "'lables'; did you mean 'labels'"),
        ("labels: [a, b]\ndata: .\n", "needs 'columns'"),
        ("columns:\ndata: .\n", "needs 'columns'"),
        ("columns: text\n", "names no data"),
        ("columns: [a, b, c]\ndata: .\n", "one or two text columns, given 3"),
        ("columns: text\ndata: .\nlabels: 2\n", "two or more different names"),
        ("kind: image-classification\ncolumns: x\ndata: .\nprompt: a {label}\n", "give 'labels', too"),
        ("columns: text\ndata: .\nlabels: [a, A]\n", "two or more different names"),
        ("columns: {a: b}\ndata: .\n", "'columns' takes a name or a list of names"),
        ("columns: text\ndata: [a, b]\n", "'data' takes one name"),
        ("columns: text\ndata: .\nmetrics: f1\n", "metric 'f1' is not for regression"),
        ("columns: text\ndata: .\nlabels: [a, b, c]\nmetrics: f1\n", "metric 'f1' is not for 3 classes"),
        ("columns: text\ndata: .\nlabels: [a, b]\nmetrics: acuracy\n", "did you mean 'accuracy'"),
        ("columns: [text\nlabels: {\n", "is not YAML"),
        ("just words\n", "holds no keys"),
        ("", "holds no keys"),
    ],
)
def test_a_task_file_with_a_mistake_gives_one_line_that_names_it(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        find_task(str(tmp_path / "mine.yaml"))
    assert line_of(error)


def test_a_task_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        find_task(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.yaml"):
        find_task(str(tmp_path / "binary.yaml"))


# A task that works itself out

N = 24
SOME = [f"text number {number}" for number in range(N)]
OTHER = [f"another text, {number}" for number in range(N)]


def work_out(folder, splits=("train", "validation"), **columns) -> ClassificationTask:
    for split in splits:
        write(folder, split, **columns)
    return find_task("classification", str(folder))


def test_text_and_named_classes_are_found_and_said(tmp_path):
    task = work_out(tmp_path / "reviews", idx=range(N), review=SOME, sentiment=["pos", "neg"] * 12)
    assert (task.name, task.columns, task.label) == ("reviews", ("review",), "sentiment")
    assert (task.labels, task.metrics, task.evaluation) == (("neg", "pos"), ("accuracy", "f1"), ("validation",))
    assert task.found == ("text in review, 2 classes (neg, pos) in sentiment, scored on validation; not used: idx")
    assert load_examples(task, "train").labels.tolist() == [1, 0] * 12


def test_a_pair_of_texts_and_numbered_classes_are_found(tmp_path):
    task = work_out(tmp_path, left=SOME, right=OTHER, label=[0, 1, 2] * 8)
    assert task.columns == ("left", "right")
    assert (task.labels, task.metrics) == (("LABEL_0", "LABEL_1", "LABEL_2"), ("accuracy", "macro_f1"))
    assert "text in left and right, 3 classes (0 to 2) in label" in task.found
    assert load_examples(task, "train").labels.tolist() == [0, 1, 2] * 8


def test_numbers_with_fractions_make_a_regression(tmp_path):
    task = work_out(tmp_path, text=SOME, score=[0.5, 4.0] * 12)
    assert (task.regression, task.metrics, task.label) == (True, ("pearson", "spearman"), "score")
    assert "a score from 0.5 to 4 in score" in task.found


def test_a_label_column_by_another_name_is_found_by_its_few_values(tmp_path):
    assert work_out(tmp_path, text=SOME, topic=["art", "war"] * 12).label == "topic"


def test_a_column_named_label_wins_over_others_that_could_be_one(tmp_path):
    task = work_out(tmp_path, text=SOME, label=[0, 1] * 12, category=[1, 0] * 12, group=[1, 1, 0] * 8)
    assert task.label == "label"


def test_a_test_split_is_scored_where_no_validation_is(tmp_path):
    task = work_out(tmp_path / "a", ("train", "test"), text=SOME, label=[0, 1] * 12)
    assert task.evaluation == ("test",)
    assert "scored on test" in task.found
    assert work_out(tmp_path / "b", ("train", "dev", "test"), text=SOME, label=[0, 1] * 12).evaluation == (
        "validation",
    )


def test_columns_that_hold_lists_or_one_value_are_no_text(tmp_path):
    task = work_out(tmp_path, text=SOME, tokens=[["a", "b"]] * N, lang=["en"] * N, group=[0, 1] * 12)
    assert (task.columns, task.label) == (("text",), "group")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": SOME, "b": OTHER, "c": SOME, "label": [0, 1] * 12}, r"3 text columns \(a, b, c\)"),
        ({"label": [0, 1] * 12, "n": range(N)}, "no text column"),
        ({"text": SOME, "p": [0, 1] * 12, "q": [0, 1] * 12}, "cannot tell which column holds the label"),
        ({"text": SOME, "other": OTHER}, "cannot tell which column holds the label"),
        ({"text": SOME, "label": [-1] * N}, "all labels in 'label' are -1, so the classes cannot be inferred"),
        ({"text": SOME, "label": [0] * N}, "all labels in 'label' are 0, so the classes cannot be inferred"),
        (
            {"text": SOME, "label": [-1, *[1] * (N - 1)]},
            "labels from -1 to 1 in 'label' are not classes counted from 0",
        ),
        (
            {"text": [SOME[0]] * N, "label": [n % 2 for n in range(N)]},
            "in every row, and nothing can be learned from one text",
        ),
        ({"text": SOME, "label": ["one"] * N}, "1 different labels are not classes"),
        ({"text": SOME, "label": [None] * N}, "column 'label' has no labels"),
        ({"text": SOME, "label": [float("nan")] * N}, "column 'label' has no labels"),
        ({"text": SOME, "label": [["a"], ["b"]] * 12}, "row 0 has a list .* in column 'label'"),
        ({"text": [], "label": []}, "has no rows"),
    ],
)
def test_data_that_does_not_show_what_the_task_is_is_refused(tmp_path, columns, said):
    with pytest.raises(UsageError, match=said) as error:
        work_out(tmp_path, **columns)
    assert line_of(error)


def test_train_alone_leaves_nothing_to_score_on(tmp_path):
    with pytest.raises(UsageError, match=r"no split to score on besides train \(looked for: validation, valid"):
        work_out(tmp_path, ("train",), text=SOME, label=[0, 1] * 12)


def test_a_task_is_named_after_its_folder_even_where_that_is_a_dot(tmp_path, monkeypatch):
    write(tmp_path / "reviews", text=SOME, label=[0, 1] * 12)
    write(tmp_path / "reviews", "test", text=SOME, label=[0, 1] * 12)
    monkeypatch.chdir(tmp_path / "reviews")
    assert find_task("classification", ".").name == "reviews"


# Label order

RTE, MNLI, SST2 = GLUE["rte"], GLUE["mnli"], GLUE["sst2"]


@pytest.mark.parametrize(
    ("names", "task", "order"),
    [
        (("entailment", "neutral", "contradiction"), MNLI, (0, 1, 2)),
        (("contradiction", "neutral", "entailment"), MNLI, (2, 1, 0)),  # as roberta-large-mnli has them
        (("contradiction", "entailment", "neutral"), MNLI, (1, 2, 0)),
        (("CONTRADICTION", "Neutral", "EntailMent"), MNLI, (2, 1, 0)),
        (("LABEL_0", "LABEL_1", "LABEL_2"), MNLI, (0, 1, 2)),
        (("label-0", "Label 1"), SST2, (0, 1)),
        (("not entailment", "entailment"), RTE, (1, 0)),
        (("NEGATIVE", "POSITIVE"), SST2, (0, 1)),
        (("POSITIVE", "NEGATIVE"), SST2, (1, 0)),
        (("entailment", "neutral", "contradiction"), RTE, None),
        (("negative", "positive"), RTE, None),
        (("negative", "neutral"), SST2, None),
        (("negative", "LABEL_1"), SST2, None),
        (("LABEL_1", "LABEL_0"), SST2, None),
        (("LABEL_1", "LABEL_2"), SST2, (0, 1)),
        (("LABEL_0",), SST2, None),
        (("LABEL_0", "LABEL_1", "LABEL_2"), SST2, None),
    ],
)
def test_outputs_are_matched_to_labels_by_name(names, task, order):
    assert label_order(names, task) == order


@given(st.permutations(["entailment", "neutral", "contradiction"]))
def test_logits_taken_in_the_found_order_stand_as_the_task_has_its_labels(names):
    assert [names[number] for number in label_order(names, MNLI)] == list(MNLI.labels)


# What is held out of train


def inside(text: str, other: str) -> bool:
    """Whether a text's words are a run of another's, by comparing strings."""
    return f" {' '.join(text.lower().split())} " in f" {' '.join(other.lower().split())} "


def related(row: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return any(inside(a, b) or inside(b, a) for a in row for b in other)


def rows_of(examples: Examples) -> list[tuple[str, ...]]:
    return list(zip(*examples.texts, strict=True))


def check_apart(examples: Examples, share: float, seed: int) -> tuple[list[int], list[int]]:
    train, held = hold_out(examples, share, seed)
    rows = rows_of(examples)
    assert train
    assert held == sorted(set(held))
    assert not set(train) & set(held)
    assert len(held) <= max(1, round(share * len(rows)))
    seen = [text for number in held for text in {text.lower() for text in rows[number]}]
    assert len(set(seen)) == len(seen), "nor is a text held out twice"
    for number in held:
        assert not any(related(rows[number], rows[other]) for other in train)
        for text in rows[number]:  # whole: no part of a longer text of a row that does not hold it whole as well
            others = [other for row in rows if text.lower() not in map(str.lower, row) for other in row]
            assert not any(inside(text, other) for other in others)
    return train, held


def phrases(sentences: int, seed: int) -> Examples:
    """Like SST-2: sentences of 5 to 20 words and, for each, runs of its words as rows of their own."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(sentences):
        words = [f"w{number}" for number in generator.zipf(1.5, generator.integers(5, 21)) % 300]
        texts.append(" ".join(words))
        for _ in range(8):
            start = generator.integers(0, len(words))
            texts.append(" ".join(words[start : start + generator.integers(1, 8)]))
    generator.shuffle(texts)
    return Examples("train", (tuple(texts),), None)


def test_of_phrases_only_whole_sentences_are_held_out_with_nothing_shared():
    examples = phrases(80, 0)
    train, held = check_apart(examples, 0.05, seed=0)
    assert len(held) == 36, "5 % of 720 rows"
    assert len(train) + len(held) < len(examples), "phrases of held-out sentences are in neither"
    naive = np.random.default_rng(0).permutation(len(examples))
    rows = rows_of(examples)
    assert any(related(rows[a], rows[b]) for a in naive[:36] for b in naive[36:]), "a random slice would leak"


def test_what_is_held_out_is_decided_by_the_seed():
    examples = phrases(40, 1)
    assert hold_out(examples, 0.05, 3) == hold_out(examples, 0.05, 3)
    assert len({tuple(hold_out(examples, 0.05, seed)[1]) for seed in range(5)}) == 5


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "D", "d"]), min_size=1, max_size=6).map(" ".join),
        min_size=8,
        max_size=40,
    ),
    st.integers(0, 1000),
)
def test_no_held_out_text_lies_inside_a_training_text_or_around_one(texts, seed):
    texts += [f"something else {number}" for number in range(2 + len(texts) // 3)]  # so that enough can be held out
    check_apart(Examples("train", (tuple(texts),), None), 0.2, seed)


@given(
    st.lists(
        st.tuples(*[st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5).map(" ".join)] * 2),
        min_size=8,
        max_size=30,
    ),
    st.integers(0, 1000),
)
def test_neither_text_of_a_held_out_pair_is_seen_in_training(pairs, seed):
    pairs += [(f"one more {number}", f"and another {number}") for number in range(2 + len(pairs) // 3)]
    check_apart(Examples("train", tuple(zip(*pairs, strict=True)), None), 0.2, seed)


def test_long_texts_are_compared_whole():
    long = " ".join(f"w{number}" for number in range(200))
    texts = [long, " ".join(f"w{number}" for number in range(50, 170)), "w7 w8", "quite another text", "a third one"]
    for seed in range(10):
        check_apart(Examples("train", (tuple(texts),), None), 0.2, seed)


def test_case_and_spaces_do_not_hide_that_texts_are_the_same():
    texts = ("The  Film", "the film", "THE FILM", "the film was good", "nothing like it", "another one")
    for seed in range(10):
        _, held = hold_out(Examples("train", (texts,), None), 0.1, seed)
        assert held[0] >= 3


def test_data_of_one_text_cannot_be_held_out_from():
    with pytest.raises(UsageError, match="too few remain"):
        hold_out(Examples("train", (("same",) * 10,), None), 0.1, 0)


def test_at_most_a_thousand_rows_are_held_out():
    texts = tuple(f"text {number}" for number in range(5000))
    train, held = hold_out(Examples("train", (texts,), None), 0.4, 0)
    assert (len(held), len(train)) == (1000, 4000)


# Submissions


@pytest.mark.parametrize(
    ("name", "split", "predictions", "file", "values"),
    [
        ("sst2", "test", [1, 0], "SST-2.tsv", ["1", "0"]),
        ("cola", "test", [1, 0], "CoLA.tsv", ["1", "0"]),
        ("mrpc", "test", [1, 0], "MRPC.tsv", ["1", "0"]),
        ("qqp", "test", [1, 0], "QQP.tsv", ["1", "0"]),
        ("wnli", "test", [1, 0], "WNLI.tsv", ["1", "0"]),
        ("rte", "test", [1, 0], "RTE.tsv", ["not_entailment", "entailment"]),
        ("qnli", "test", [1, 0], "QNLI.tsv", ["not_entailment", "entailment"]),
        ("mnli", "test_matched", [2, 0, 1], "MNLI-m.tsv", ["contradiction", "entailment", "neutral"]),
        ("mnli", "test_mismatched", [1], "MNLI-mm.tsv", ["neutral"]),
        ("stsb", "test", [-0.5, 2.5, 5.25, 3.14159], "STS-B.tsv", ["0.000", "2.500", "5.000", "3.142"]),
    ],
)
def test_a_submission_is_the_leaderboards_file(tmp_path, name, split, predictions, file, values):
    written = write_submission(GLUE[name], split, np.array(predictions), tmp_path / "out")
    assert written == tmp_path / "out" / file
    header, *lines = written.read_text().splitlines()
    assert header == "index\tprediction"
    assert [line.split("\t") for line in lines] == [[str(row), value] for row, value in enumerate(values)]
    assert list(written.parent.iterdir()) == [written], "nothing temporary is left"


def test_only_test_splits_of_glue_are_submitted(tmp_path):
    assert write_submission(SST2, "validation", np.array([1]), tmp_path) is None
    mine = ClassificationTask("mine", ("text",), ("a", "b"), ("accuracy",), DataSource())
    assert write_submission(mine, "test", np.array([1]), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_submission_takes_an_old_ones_place_whole(tmp_path):
    write_submission(SST2, "test", np.array([1] * 100), tmp_path)
    file = write_submission(SST2, "test", np.array([0]), tmp_path)
    assert file.read_text() == "index\tprediction\n0\t0\n"
    with pytest.raises(ValueError, match="convert"):
        write_submission(SST2, "test", np.array([1.0, float("nan")]), tmp_path)
    assert file.read_text() == "index\tprediction\n0\t0\n", "what fails leaves the old file"
    assert list(tmp_path.iterdir()) == [file]
