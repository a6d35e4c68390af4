"""A split in large files, read in parts and mapped, is the same as one that is held in memory."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from kdalign.data import table_parts, text_rows
from kdalign.data.tasks import Examples, find_task, large_splits, load_examples, load_texts
from kdalign.data.tasks.holdout import count_leaks
from kdalign.data.text_rows import TextRows
from kdalign.data.tokenization import special_token_note
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.files import sha256
from support.commands import command, steps_of
from support.covering import first_only
from support.tiny import sentences


@pytest.fixture
def large(monkeypatch):
    """Treat every file as a large one, and read a few rows at a time."""

    def switch(on=True):
        monkeypatch.setattr(large_splits, "LARGE", 1 if on else 2**60)
        monkeypatch.setattr(large_splits, "_LABELS", 7)
        monkeypatch.setattr(table_parts, "BYTES", 200)
        monkeypatch.setattr(table_parts, "ROWS", 10)
        monkeypatch.setattr(text_rows, "CHUNK", 9)

    switch()
    return switch


def save(folder, table, kind="parquet", split="train"):
    folder.mkdir(exist_ok=True)
    file = folder / f"{split}.{kind}"
    match kind:
        case "parquet":
            table.to_parquet(file)
        case "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
        case _:
            table.to_csv(file, index=False, sep="," if kind == "csv" else "\t")
    return folder


def both(large, load, task, split="train"):
    """The split from parts and as a whole, or the error of each."""

    def attempt(on):
        large(on)
        try:
            return load(task, split)
        except UsageError as error:
            return str(error)

    return attempt(True), attempt(False)


def same(mapped, held):
    assert all(isinstance(column, TextRows) for column in mapped.texts)
    assert all(isinstance(column, tuple) for column in held.texts)
    assert (mapped.texts, mapped.blank, mapped.passed_over) == (held.texts, held.blank, held.passed_over)
    assert (mapped.labels is None) == (held.labels is None)
    if held.labels is not None:
        assert (mapped.labels.dtype, mapped.labels.tolist()) == (held.labels.dtype, held.labels.tolist())
        assert isinstance(mapped.labels, np.memmap)
    assert mapped.fingerprint() == held.fingerprint()


TEXTS, LABELS = sentences(50, 3)
LABEL_COLUMNS = {
    "numbers": LABELS,
    "text of numbers": [str(label) for label in LABELS],
    "names": [("Negative", "positive ")[label] for label in LABELS],
    "truth values": [bool(label) for label in LABELS],
    "floats": [float(label) for label in LABELS],
    "unknown": [-1] * 50,
}


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("labels", LABEL_COLUMNS)
def test_texts_and_labels_of_every_format_are_the_same(large, tmp_path, kind, labels):
    texts = [*TEXTS[:-2], " ", "naïve \U0001f600"]
    folder = save(tmp_path / "data", pd.DataFrame({"sentence": texts, "label": LABEL_COLUMNS[labels]}), kind)
    same(*both(large, load_examples, find_task("sst2", str(folder))))


def test_pairs_and_scores_of_several_shards_are_the_same(large, tmp_path):
    table = pd.DataFrame({"sentence1": TEXTS, "sentence2": TEXTS[::-1], "label": np.linspace(0, 5, 50)})
    (tmp_path / "data").mkdir()
    for number, part in enumerate((table[:30], table[30:])):
        part.to_parquet(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet")
    same(*both(large, load_examples, find_task("stsb", str(tmp_path / "data"))))


def test_documents_pairs_and_conversations_are_the_same(large, tmp_path):
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "é!"}]
    table = pd.DataFrame({"text": [*TEXTS[:-3], "", None, "\n"], "source": TEXTS, "target": TEXTS[::-1]})
    save(tmp_path / "data", table)
    save(tmp_path / "chats", pd.DataFrame({"messages": [turns] * 50}), "jsonl")
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "train.txt").write_text("\n\n".join(TEXTS))
    for name, folder in (("lm:text", "data"), ("translation", "data"), ("chat", "chats"), ("lm:text", "lines")):
        same(*both(large, load_texts, find_task(name, str(tmp_path / folder))))


def test_the_column_of_text_is_found_in_parts_as_in_the_whole(large, tmp_path):
    for number, columns in enumerate(
        ({"x": TEXTS, "label": LABELS}, {"x": LABELS}, {"x": TEXTS, "y": [*LABELS[1:], "a"]})
    ):
        folder = save(tmp_path / str(number), pd.DataFrame(columns, dtype=object), "csv")
        parts, whole = both(large, lambda name, place: find_task(name, place), "lm", str(folder))
        assert parts == whole


BAD_CELLS = {
    "no text": ("sentence", None),
    "a number for a text": ("sentence", 7),
    "half a character": ("sentence", "a\ud83d"),
    "no label": ("label", None),
    "another label": ("label", "neutral"),
    "a label of another kind": ("label", 1),
    "a label that is a list": ("label", ["positive"]),
}


@pytest.mark.parametrize("bad", BAD_CELLS)
def test_a_bad_cell_in_the_middle_is_named_as_in_a_small_file(large, tmp_path, bad):
    column, cell = BAD_CELLS[bad]
    table = pd.DataFrame({"sentence": TEXTS, "label": LABEL_COLUMNS["names"]}, dtype=object)
    table.loc[33, column] = [cell] if isinstance(cell, list) else cell
    if isinstance(cell, list):
        table.at[33, column] = cell
    folder = save(tmp_path / "data", table, "jsonl")
    parts, whole = both(large, load_examples, find_task("sst2", str(folder)))
    assert "row 33" in parts
    assert parts == whole
    assert not list(cache_folder().rglob("*.*")), "nothing is kept of it"


def test_scores_that_are_no_numbers_are_named_as_in_a_small_file(large, tmp_path):
    for bad in ("", "1,5", "inf", "two"):
        scores = [str(number / 10) for number in range(50)]
        scores[33] = bad
        table = pd.DataFrame({"sentence1": TEXTS, "sentence2": TEXTS, "label": scores})
        parts, whole = both(large, load_examples, find_task("stsb", str(save(tmp_path / "data", table, "csv"))))
        assert "row 33" in parts
        assert parts == whole


def test_a_column_that_is_missing_and_a_split_without_text_are_named_as_in_a_small_file(large, tmp_path):
    tables = [
        pd.DataFrame({"text": TEXTS, "label": LABELS}),
        pd.DataFrame({"sentence": TEXTS, "Label": LABELS}),
        pd.DataFrame({"sentence": [" "] * 50, "label": LABELS}),
    ]
    for number, table in enumerate(tables):
        folder = save(tmp_path / str(number), table)
        parts, whole = both(large, load_examples, find_task("sst2", str(folder)))
        assert isinstance(parts, str)
        assert parts == whole


def test_keys_that_some_parts_lack_are_read_as_a_whole(large, tmp_path):
    (tmp_path / "train.jsonl").write_text(
        '{"sentence": "a", "label": 1}\n' * 20 + '{"sentence": "b", "label": 0, "x": 1}\n'
    )
    found = load_examples(find_task("sst2", str(tmp_path)), "train")
    assert found.texts == (("a",) * 20 + ("b",),)


def test_the_second_time_the_file_is_hashed_and_not_read(large, tmp_path, monkeypatch):
    task = find_task("sst2", str(save(tmp_path / "data", pd.DataFrame({"sentence": TEXTS, "label": LABELS}))))
    first = load_examples(task, "train")
    monkeypatch.setattr(large_splits, "table_parts", lambda *_: pytest.fail("it was read"))
    same(load_examples(task, "train"), Examples("train", (tuple(TEXTS),), np.array(LABELS)))
    assert first.fingerprint() == load_examples(task, "train").fingerprint()


def test_a_file_of_the_same_size_and_time_with_another_byte_is_read_again(large, tmp_path):
    folder = save(tmp_path / "data", pd.DataFrame({"sentence": TEXTS, "label": LABELS}), "csv")
    file, task = folder / "train.csv", find_task("sst2", str(folder))
    before = file.stat()
    assert load_examples(task, "train").labels[0] == LABELS[0]
    file.write_text(file.read_text().replace(f",{LABELS[0]}\n", f",{1 - LABELS[0]}\n", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert load_examples(task, "train").labels[0] == 1 - LABELS[0]


def test_a_file_that_changes_while_it_is_read_is_refused(large, tmp_path, monkeypatch):
    folder = save(tmp_path / "data", pd.DataFrame({"sentence": TEXTS, "label": LABELS}), "csv")

    def changing(file):
        found = sha256(file)
        file.write_text(file.read_text() + "one more,1\n")
        return found

    monkeypatch.setattr(large_splits, "sha256", changing)
    with pytest.raises(UsageError, match="its files changed while they were read"):
        load_examples(find_task("sst2", str(folder)), "train")


def test_without_a_cache_rows_are_held_in_memory(large, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path / "file"))
    folder = save(tmp_path / "data", pd.DataFrame({"sentence": TEXTS, "label": LABELS}))
    assert load_examples(find_task("sst2", str(folder)), "train").texts == (tuple(TEXTS),)
    assert isinstance(load_examples(find_task("sst2", str(folder)), "train").texts[0], tuple)


def test_what_a_pass_over_the_texts_finds_is_kept_and_the_same(large, tmp_path, teacher):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts = [*TEXTS[:-1], "a [MASK] b"]
    task = find_task("sst2", str(save(tmp_path / "data", pd.DataFrame({"sentence": texts, "label": LABELS}))))
    mapped, held = both(large, load_examples, task)
    few = held.take([3, 4, 49])
    for _ in range(2):
        assert count_leaks([few, few.take([0])], mapped) == count_leaks([few, few.take([0])], held) == [3, 1]
        assert special_token_note(mapped, tokenizer) == special_token_note(held, tokenizer) != ""
    assert len(list((cache_folder() / "passes").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("order", first_only(["in neighbourhoods", "permuted"]))
def test_a_run_on_mapped_rows_takes_the_same_steps_and_resumes(
    large, kdalign, stopped, data, teacher, tmp_path, monkeypatch, order
):
    from kdalign.data import epoch_order, epochs
    from kdalign.distillation import token_cache

    if order == "in neighbourhoods":
        monkeypatch.setattr(epochs, "MOST_PERMUTED", 10)
        monkeypatch.setattr(epoch_order, "NEIGHBOURHOOD", 3)
    monkeypatch.setattr(token_cache, "LEAST_ROWS", 10)
    words = command(teacher, data, "run", "--set", "train.checkpoint_every=3", "--no-profile")[2:]

    def run(start, out):
        code, _, err = start(*[out if word == "run" else word for word in words])
        return code, err

    large(False)
    assert run(kdalign, "held")[0] == 0
    monkeypatch.setattr(token_cache, "PART", 60)
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path / "cache"))
    large(True)
    assert run(kdalign, "mapped")[0] == 0
    assert (tmp_path / "cache" / "texts").is_dir()
    assert run(stopped, "killed")[0] == 9
    code, _, err = kdalign("distill", "--out", "killed", "--resume")
    assert code == 0, err
    weights = [sha256(tmp_path / out / "student" / "model.safetensors") for out in ("held", "mapped", "killed")]
    assert len(set(weights)) == 1
    losses = [[step["loss"] for step in steps_of(tmp_path / out)] for out in ("held", "mapped", "killed")]
    assert losses[0] == losses[1] == losses[2]
    assert len(losses[0]) == 8
