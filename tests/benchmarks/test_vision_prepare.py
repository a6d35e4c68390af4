"""Small images as parquet files, with labels or captions."""

import gzip
import io

import numpy as np
import pandas as pd
import pytest

Picture = pytest.importorskip("PIL.Image")
from datasets import load_dataset  # noqa: E402

from benchmarks.vision import prepare  # noqa: E402  (it needs Pillow)


def write_idx(file, values):
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    file.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 4))
    write_idx(folder / "all-images-idx3-ubyte.gz", images)
    write_idx(folder / "all-labels-idx1-ubyte.gz", np.arange(60) % 10)
    return folder, images


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["prepare", *map(str, arguments)])
    prepare.main()


def test_pixels_and_labels_are_those_of_the_source_and_each_image_is_in_one_split(source, tmp_path, monkeypatch):
    folder, images = source
    run(monkeypatch, tmp_path / "out", folder, "--count", 40, 10, 10, "--captions")
    seen = []
    for split, per_label in (("train", 4), ("validation", 1), ("test", 1)):
        table = pd.read_parquet(tmp_path / "out" / f"{split}.parquet")
        captions = pd.read_parquet(tmp_path / "out-captions" / f"{split}.parquet")
        assert table.label.value_counts().to_dict() == dict.fromkeys(range(10), per_label)
        for cell, label, text in zip(table.image, table.label, captions.text, strict=True):
            row = int(cell["path"].removeprefix("all-").removesuffix(".png"))
            seen.append(row)
            assert label == row % 10
            assert str(label) in text or prepare.NAMES[label] in text
            assert np.array_equal(np.asarray(Picture.open(io.BytesIO(cell["bytes"]))), images[row])
        assert captions.image.tolist() == table.image.tolist()
    assert sorted(seen) == list(range(60))


def test_the_library_of_the_hub_reads_images_and_names_of_labels(source, tmp_path, monkeypatch):
    run(monkeypatch, tmp_path / "out", source[0], "--count", 40, 10, 10)
    read = load_dataset("parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["test"]
    assert (read[0]["image"].mode, read[0]["image"].size) == ("L", (4, 6))
    assert read.features["label"].names == [str(digit) for digit in range(10)]


def test_test_images_are_those_of_the_official_test_alone(tmp_path, monkeypatch):
    """With the names of classes that are given, and with all of test where as many are asked for."""
    for name, grey, rows in (("train", 10, 60), ("t10k", 200, 20)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", np.full((rows, 4, 4), grey))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.arange(rows) % 2)
    run(monkeypatch, tmp_path / "out", tmp_path, "--count", 40, 20, 20, "--labels", "shirt", "coat")
    for split, grey, rows in (("train", 10, 40), ("validation", 10, 20), ("test", 200, 20)):
        read = load_dataset(
            "parquet", data_files=str(tmp_path / "out" / f"{split}.parquet"), cache_dir=str(tmp_path / "c")
        )
        assert {image.getpixel((0, 0)) for image in read["train"]["image"]} == {grey}
        assert np.bincount(read["train"]["label"]).tolist() == [rows / 2, rows / 2]
        assert read["train"].features["label"].names == ["shirt", "coat"]


def test_a_folder_without_images_ends_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="has 0 files"):
        run(monkeypatch, tmp_path / "out", tmp_path)


def bar(width, slant):
    """Draw a bar of 20 rows, which leans as many columns a row."""
    image = np.zeros((28, 28))
    for row in range(20):
        left = round(14 - width / 2 + slant * (9.5 - row))
        image[4 + row, left : left + width] = 255
    return image


@pytest.mark.parametrize(
    ("width", "slant", "stroke", "lean"),
    [
        (2, 0.0, "thin", "upright"),
        (8, 0.0, "thick", "upright"),
        (2, 0.5, "thin", "leaning right"),
        (8, -0.5, "thick", "leaning left"),
    ],
)
def test_strokes_and_lean_of_a_drawn_bar_are_said(width, slant, stroke, lean):
    described = prepare.describe(bar(width, slant), 1)
    assert (described.digit, described.stroke, described.lean, described.shape) == (1, stroke, lean, "narrow")


def test_the_best_recall_counts_a_description_once():
    one, other = prepare.Description(1, "thin", "upright", "wide"), prepare.Description(2, "thin", "upright", "wide")
    assert prepare.best_recall([one, one, one, other]) == 2 / 4
