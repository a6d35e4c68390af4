"""A split may be a folder of sounds or images: by class, with metadata, or with transcripts."""

import json

import pandas as pd
import pytest

from kdalign.data.media.folders import holds_media, read_folder
from kdalign.data.split_files import available_splits, require_files, split_files
from kdalign.data.tables import FORMATS
from kdalign.data.tasks import find_task, load_examples, load_texts
from kdalign.errors import UsageError
from support.media import noise_png, noise_wav


def put(folder, *names):
    """Write different images and sounds, by the ending of their names."""
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noise_wav(number) if name.endswith("wav") else noise_png(number))
    return folder


def test_folders_are_classes_and_hold_images_at_any_depth(tmp_path):
    put(tmp_path / "train", "dog/2.png", "cat/more/1.PNG", "cat/3.png", "cat/.hidden.png")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"")
    assert read_folder(tmp_path / "train").to_dict("list") == {
        "image": ["cat/3.png", "cat/more/1.PNG", "dog/2.png"],
        "label": ["cat", "cat", "dog"],
    }


def test_a_data_folder_of_class_folders_is_a_task(tmp_path):
    put(tmp_path, *(f"{split}/{name}/{n}.png" for split in ("train", "val") for name in ("b", "a") for n in (1, 2)))
    task = find_task("image-classification", str(tmp_path))
    assert (task.columns, task.labels, task.evaluation) == (("image",), ("a", "b"), ("validation",))
    examples = load_examples(task, "validation")
    assert examples.labels.tolist() == [0, 0, 1, 1]
    assert examples.texts[0].name(2) == "b/1.png"
    assert examples.texts[0].read(2) == (tmp_path / "val" / "b" / "1.png").read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_metadata_name_files_and_what_is_known_of_them(tmp_path, kind):
    folder = put(tmp_path / "train", "x/1.wav", "2.wav", "3.wav")
    table = pd.DataFrame({"file_name": ["2.wav", "x/1.wav"], "text": ["two", "one"]})
    file = folder / f"metadata.{kind}"
    match kind:
        case "parquet":
            table.to_parquet(file)
        case "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
        case _:
            table.to_csv(file, sep="\t" if kind == "tsv" else ",", index=False)
    examples = load_texts(find_task("speech-recognition", str(tmp_path)), "train")
    assert examples.texts[1] == ("two", "one")
    assert [examples.texts[0].read(row) for row in range(2)] == [noise_wav(1), noise_wav(0)]


def test_a_text_file_beside_a_sound_is_its_transcript(tmp_path):
    folder = put(tmp_path / "train", "b/1.wav", "a/1.wav")
    (folder / "a" / "1.txt").write_text("the first\n")
    (folder / "b" / "1.txt").write_text("the  second\nline\n")
    (folder / "README.txt").write_text("about")
    examples = load_texts(find_task("speech-recognition", str(tmp_path)), "train")
    assert examples.texts[1] == ("the first", "the second line")
    assert [examples.texts[0].name(row) for row in range(2)] == ["a/1.wav", "b/1.wav"]


def test_files_alone_have_no_labels(tmp_path):
    assert read_folder(put(tmp_path, "2.png", "1.png")).to_dict("list") == {"image": ["1.png", "2.png"]}


def metadata_without_files(folder):
    (put(folder, "1.png") / "metadata.csv").write_text("name,label\n1.png,a\n")


def metadata_with_both(folder):
    (put(folder, "1.png") / "metadata.csv").write_text("file_name,image\n1.png,1.png\n")


def metadata_twice(folder):
    (put(folder, "1.png") / "metadata.csv").write_text("file_name\n1.png\n")
    (folder / "metadata.tsv").write_text("file_name\n1.png\n")


def metadata_of_texts(folder):
    (put(folder, "1.png") / "metadata.csv").write_text("file_name\nREADME.md\n")


def one_transcript(folder):
    (put(folder, "1.wav", "2.wav") / "1.txt").write_text("one")


def an_empty_class(folder):
    (put(folder, "a/1.png") / "b").mkdir()


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (metadata_without_files, r".*metadata\.csv' has no column 'file_name' \(it has: name, label\)"),
        (metadata_with_both, r".*metadata\.csv' has columns 'file_name' and 'image': keep one"),
        (metadata_twice, r".* has metadata\.csv and metadata\.tsv: keep one"),
        (metadata_of_texts, r".*metadata\.csv' names no file of sound or image in 'file_name'"),
        (one_transcript, r".*2\.wav' has no transcript beside it, and other files have one"),
        (an_empty_class, r".*b' is a class without a file that is read \(endings: wav, .*\)"),
        (lambda folder: put(folder, "a/1.png", "2.png"), r".* has folders by class, and '2\.png' in none of them"),
        (lambda folder: put(folder, "1.png", "2.wav"), r".* has sounds and images \(2\.wav, 1\.png\): give each .*"),
    ],
)
def test_a_folder_that_can_be_read_two_ways_is_refused_in_one_line(tmp_path, write, line):
    write(tmp_path)
    with pytest.raises(UsageError, match=f"^{line}$"):
        read_folder(tmp_path)


def test_a_file_of_a_split_comes_before_a_folder_of_its_name(tmp_path):
    put(tmp_path, "train/1.png", "test/1.png")
    (tmp_path / "train.csv").write_text("image,label\ntrain/1.png,a\n")
    assert split_files(tmp_path, "train", FORMATS) == [tmp_path / "train.csv"]
    assert split_files(tmp_path, "test", FORMATS) == [tmp_path / "test"]
    assert available_splits(tmp_path) == ["train"]  # folders beside files may be anything


@pytest.mark.parametrize("below", ["", "data"])
def test_splits_are_found_by_their_names_and_other_names_of_them(tmp_path, below):
    put(tmp_path / below, "train/1.png", "dev/1.png")
    (tmp_path / ".git").mkdir()
    assert require_files(tmp_path, "validation", FORMATS) == [tmp_path / below / "dev"]
    assert available_splits(tmp_path) == ["dev", "train"]
    with pytest.raises(UsageError, match=r"no split 'tran' .*did you mean 'train'\? \(it has: dev, train\)"):
        require_files(tmp_path, "tran", FORMATS)


def test_two_folders_that_could_be_a_split_are_refused_with_both_names(tmp_path):
    put(tmp_path, "val/1.png", "validation/1.png")
    with pytest.raises(UsageError, match=r"several files in .*'val', 'validation'; keep one"):
        split_files(tmp_path, "validation", FORMATS)


def test_a_folder_without_sounds_or_images_is_no_split(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.heic").write_bytes(b"")
    assert not holds_media(tmp_path / "train")
    with pytest.raises(UsageError, match="'train' is a folder, not a file, and has no sounds or images to read"):
        require_files(tmp_path, "train", FORMATS)
