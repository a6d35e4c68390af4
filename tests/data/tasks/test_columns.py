"""Cells: what is text, what is a number, and what is neither and is refused with its row, in every format."""

import json
from datetime import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdalign.data.tasks import find_task, load_examples, load_texts
from kdalign.data.tasks.columns import describe_cell, is_blank, looks_like_data, parse_number
from kdalign.data.tasks.loading import load_unlabelled
from kdalign.errors import UsageError

NO_TEXTS = [
    (["there", "was"], r"a list \(\[\"there\", \"was\"\]\)"),
    ({"a": 1}, r"an object \(\{\"a\": 1\}\)"),
    (5, "the number 5"),
    (0.5, "the number 0.5"),
    (True, "the truth value true"),
]


def put(folder, rows, split="train", kind="jsonl"):
    """Write rows as a split and return the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), file)
    return str(folder)


@pytest.mark.parametrize(("cell", "said"), NO_TEXTS)
@pytest.mark.parametrize("task", ["sst2", "lm:sentence", "translation:sentence-label", "transcription:label-sentence"])
def test_a_cell_that_is_no_text_is_refused_with_row_and_column_in_every_task(tmp_path, task, cell, said):
    label = 1 if task == "sst2" else "ein Film"
    folder = put(tmp_path, [{"sentence": "a film", "label": label}, {"sentence": cell, "label": label}])
    load = load_examples if task == "sst2" else load_texts
    with pytest.raises(UsageError, match=rf"row 1 has {said} in column 'sentence', where text is expected"):
        load(find_task(task, folder), "train")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (["a", "b"], "a list"),
        ({"a": "b"}, "an object"),
        (b"bytes", "bytes"),
        (5, "the number 5"),
        (False, "the truth value false"),
        (Decimal("1.50"), "the number 1.50"),
        (datetime(2026, 1, 1), "a time"),
    ],
)
def test_a_column_of_parquet_that_is_no_text_is_refused(tmp_path, cell, said):
    folder = put(tmp_path, [{"sentence": cell, "label": 1}] * 2, kind="parquet")
    with pytest.raises(UsageError, match=rf"row 0 has {said}.* in column 'sentence'"):
        load_examples(find_task("sst2", folder), "train")
    with pytest.raises(UsageError, match=rf"row 0 has {said}.* in column 'sentence'"):
        load_unlabelled(find_task("sst2", folder), tmp_path)


def test_half_a_character_is_refused_and_not_written(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "label": 1}\n{"sentence": "b \\ud83d", "label": 0}\n')
    for task, load in (("sst2", load_examples), ("lm:sentence", load_texts)):
        with pytest.raises(UsageError, match=r"row 1 has half a character in column 'sentence' \(\\ud83d"):
            load(find_task(task, str(tmp_path)), "train")


def test_a_text_in_an_object_of_translations_is_checked_as_any_other(tmp_path):
    folder = put(tmp_path, [{"translation": {"en": "a", "de": "b"}}, {"translation": {"en": "a", "de": 3}}])
    with pytest.raises(UsageError, match="row 1 has the number 3 in column 'de'"):
        load_texts(find_task("translation:en-de", folder), "train")


@pytest.mark.parametrize(("cell", "said"), NO_TEXTS[1:])
def test_a_reference_that_is_no_text_is_refused(tmp_path, cell, said):
    (tmp_path / "t.yaml").write_text(
        "kind: translation\ncolumns: [en, de]\nreferences: [de, more]\ndata: d\nevaluation: train\n"
    )
    rows = [{"en": "a", "de": "b", "more": ["c", None, "", "b"]}, {"en": "a", "de": "b", "more": ["c", cell]}]
    put(tmp_path / "d", rows[:1])
    assert load_texts(find_task(str(tmp_path / "t.yaml")), "train").references == (("b", "c"),)
    put(tmp_path / "d", rows)
    with pytest.raises(UsageError, match=rf"row 1 has {said} in column 'more'"):
        load_texts(find_task(str(tmp_path / "t.yaml")), "train")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}],
            "a message needs content, a text, .*; message 1 is an object",
        ),
        ([{"role": "user", "content": ["x"]}], "a message needs content, a text, .*; message 0 is"),
        ([{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "x"}], "message 0 has half a char"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning_content": "\ud83d"}],
            "has half a character in column 'messages'",
        ),
        ([{"role": "assistant", "content": "hi"}, {"role": "user", "content": "ok"}], "the assistant begins the conv"),
        ([{"role": "assistant", "content": "hi"}], "the assistant begins the conversation and says nothing after it"),
        ([], r"a conversation is a list of messages; given a list \(\[\]\)"),
        ({"role": "user"}, "given an object"),
        (
            [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}],
            "message 1 has from .*function_call",
        ),
        ([{"from": "human", "value": "x"}, {"from": "gpt"}], r"a message needs .*\(or from and value, .*message 1 is"),
    ],
)
def test_a_conversation_without_its_texts_is_named_with_its_row(tmp_path, messages, said):
    good = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    folder = put(tmp_path, [{"messages": good}, {"messages": messages}])
    with pytest.raises(UsageError, match=f"row 1.*{said}"):
        load_texts(find_task("chat", folder), "train")


BLANKS = ["", " ", "\0\0", "\t\n", "\u200b\ufeff", "\x1f", "\u3000\u00a0"]


@pytest.mark.parametrize("text", BLANKS)
def test_a_text_of_white_space_and_control_characters_has_nothing_to_read(text):
    assert is_blank(text)
    assert not is_blank(f"{text}.")


def test_a_document_with_nothing_to_read_is_passed_over_and_a_row_of_a_class_stays_and_both_are_counted(tmp_path):
    folder = put(tmp_path, [{"sentence": text, "label": 1} for text in ["a", *BLANKS]])
    assert load_texts(find_task("lm:sentence", folder), "train").passed_over == len(BLANKS)
    examples = load_examples(find_task("sst2", folder), "train")
    assert (len(examples), examples.blank) == (1 + len(BLANKS), len(BLANKS))
    put(tmp_path, [{"sentence": text, "label": 1} for text in BLANKS])
    with pytest.raises(UsageError, match="has no text: every row has white space or control characters alone"):
        load_examples(find_task("sst2", folder), "train")


def test_blank_lines_of_a_text_file_are_counted(tmp_path):
    (tmp_path / "train.txt").write_text("one\n\n  \ntwo\n\n")
    found = load_texts(find_task("lm", str(tmp_path)), "train")
    assert (found.texts, found.passed_over) == ((("one", "two"),), 3)
    unlabelled = load_unlabelled(find_task("sst2", str(tmp_path)), tmp_path / "train.txt")
    assert (unlabelled.texts, unlabelled.passed_over) == ((("one", "two"),), 3)
    (tmp_path / "train.txt").write_text("\n  \n\n")
    with pytest.raises(UsageError, match="has no text: every document is empty"):
        load_texts(find_task("lm", str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *[("1", 1), (" 1", 1), ("+1", 1), ("1.0", 1), ("-1", -1), ("1e3", 1000), (".5", 0.5), (2, 2), ("3.", 3)],
        *[(np.int64(4), 4), (Decimal("1.5"), 1.5), (10**400, float("inf"))],
        *[(text, None) for text in ("1,5", "one", "", "0x1", "1_0", "1 0", "१", "--1", "e5")],
        *[(other, None) for other in (True, None, [1], b"1", {})],
    ],
)
def test_a_number_is_what_is_one_or_is_written_as_one(cell, number):
    assert parse_number(cell) == number


@pytest.mark.parametrize(
    ("name", "data"),
    [("text", False), ("review text", False), ("1", True), ("0.5", True), ("a good film it was indeed", True)],
)
def test_a_columns_name_that_looks_like_data(name, data):
    assert looks_like_data(name) is data


def test_what_is_shown_of_a_cell_is_short():
    assert len(describe_cell(list(range(10_000)))) < 80
    assert describe_cell(np.array([1, 2])) == "a list ([1, 2])"


def test_csv_keeps_a_text_that_looks_like_a_number(tmp_path):
    texts = ["007", "1.0", "1e5", "True", "2024-01-05", "NA", "None"]
    pd.DataFrame({"sentence": texts, "label": [0, 1, 0, 1, 0, 1, 0]}).to_csv(tmp_path / "train.csv", index=False)
    assert load_examples(find_task("sst2", str(tmp_path)), "train").texts == (tuple(texts),)
    assert load_texts(find_task("lm", str(tmp_path)), "train").texts == (tuple(texts),)


def test_a_conversation_in_the_form_of_sharegpt_is_the_same_conversation(tmp_path):
    names = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}
    turns = [("system", "be kind"), ("human", "x"), ("gpt", "y"), ("observation", "42"), ("gpt", "z")]
    theirs = put(tmp_path / "theirs", [{"conversations": [{"from": one, "value": text} for one, text in turns]}])
    ours = put(tmp_path / "ours", [{"messages": [{"role": names[one], "content": text} for one, text in turns]}])
    read = [load_texts(find_task("chat", folder), "train") for folder in (theirs, ours)]
    assert read[0].texts == read[1].texts
