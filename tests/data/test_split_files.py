"""The files of a split: one by its name, or shards as the hub names them, and never two that could be it."""

import pandas as pd
import pytest

from kdalign.data.split_files import available_splits, split_files
from kdalign.data.tables import FORMATS
from kdalign.data.tasks import find_task, load_examples, load_texts
from kdalign.errors import UsageError


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        table = pd.DataFrame({"sentence": [f"text {number}", f"and {number}"], "label": [0, 1]})
        table.to_parquet(folder / name) if name.endswith("parquet") else table.to_csv(folder / name, index=False)
    return folder


@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("end", ["", "-0123456789abcdef"])
def test_shards_of_the_hub_are_read_in_their_order(tmp_path, below, end):
    put(tmp_path / below, f"train-00001-of-00002{end}.parquet", f"train-00000-of-00002{end}.parquet")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "metadata.csv").write_text("a,b\n1,2\n")
    examples = load_examples(find_task("sst2", str(tmp_path)), "train")
    assert examples.texts == (("text 1", "and 1", "text 0", "and 0"),)
    assert "train" in available_splits(tmp_path)


def test_a_folders_own_splits_come_before_those_in_data_below_it(tmp_path):
    put(tmp_path, "train.csv")
    put(tmp_path / "data", "train.csv", "validation.csv")
    assert split_files(tmp_path, "train", FORMATS) == [tmp_path / "train.csv"]
    assert split_files(tmp_path, "validation", FORMATS) == []


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "train.parquet"),
        ("train.csv", "train-00000-of-00001.parquet"),
        ("train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
    ],
)
def test_two_files_that_could_be_a_split_are_refused_with_both_names(tmp_path, names):
    with pytest.raises(UsageError, match="several files") as error:
        load_examples(find_task("sst2", str(put(tmp_path, *names))), "train")
    assert all(repr(name) in str(error.value) for name in names[:2])


def test_two_names_of_one_split_are_two_files(tmp_path):
    put(tmp_path, "dev.csv", "validation.csv")
    with pytest.raises(UsageError, match=r"'dev\.csv', 'validation\.csv'"):
        split_files(tmp_path, "validation", FORMATS)
    assert split_files(tmp_path, "dev", FORMATS) == [tmp_path / "dev.csv"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train-00000-of-00003.parquet", "train-00002-of-00003.parquet"), "2 files of 3: number 00001 is missing"),
        (
            ("train-00000-of-00001.parquet", "train-00000-of-00001-0123456789abcdef.parquet"),
            "2 files of 1: one is there twice",
        ),
    ],
)
def test_shards_that_are_no_whole_are_refused(tmp_path, names, said):
    with pytest.raises(UsageError, match=said):
        split_files(put(tmp_path, *names), "train", FORMATS)


def test_shards_of_other_columns_are_refused(tmp_path):
    put(tmp_path, "train-00000-of-00002.csv")
    (tmp_path / "train-00001-of-00002.csv").write_text("text,label\na,1\n")
    with pytest.raises(UsageError, match=r"train-00001-of-00002\.csv' has the columns text, label, and 'train-00000"):
        load_examples(find_task("sst2", str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train.json", "'train.json' is not one of the formats read here: parquet.* .save it as jsonl"),
        ("train.csv.gz", "'train.csv.gz' is not one of the formats read here: parquet.* .unpack it"),
        ("train.xlsx", "save it as csv"),
        ("train.txt", "it holds text without labels"),
    ],
)
def test_a_file_of_another_format_is_named_as_the_cause(tmp_path, name, said):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=f"no split 'train' .*{said}"):
        load_examples(find_task("sst2", str(tmp_path)), "train")


def test_a_folder_or_a_broken_link_in_a_files_place_is_named(tmp_path):
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(UsageError, match=r"'train\.parquet' is a folder, not a file"):
        load_examples(find_task("sst2", str(tmp_path)), "train")
    (tmp_path / "validation.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(UsageError, match=r"'validation\.csv' is a broken link"):
        load_examples(find_task("sst2", str(tmp_path)), "validation")


def test_a_files_ending_may_be_in_capitals(tmp_path):
    (tmp_path / "train.TXT").write_text("one\ntwo\n")
    assert load_texts(find_task("lm", str(tmp_path)), "train").texts == (("one", "two"),)
