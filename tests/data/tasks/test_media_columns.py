"""A column of sounds or images: the same rows, be they bytes, files or objects, or a line that names the fault."""

import numpy as np
import pandas as pd
import pytest

from kdalign.data.media.audio import decode_audio
from kdalign.data.tables import read_table
from kdalign.data.tasks.media_columns import find_media_column, read_media
from kdalign.errors import UsageError
from support.media import encode_wav, noise_png, noise_wav

WAVS = [noise_wav(number) for number in range(3)]


@pytest.fixture
def folder(tmp_path):
    for number, encoded in enumerate(WAVS):
        (tmp_path / f"{number}.wav").write_bytes(encoded)
    return tmp_path


def read(cells, folder=None, modality="audio"):
    table = pd.DataFrame({"it": pd.Series(cells, dtype=object)})
    return read_media(table, "it", modality, "data, split 'train'", folder)


def test_bytes_files_and_objects_are_the_same_rows(folder):
    files = [f"{number}.wav" for number in range(3)]
    rows = read(WAVS)
    assert rows.name(1) == "row 1 of data, split 'train'"
    for cells in (
        files,
        [str(folder / file) for file in files],
        [{"bytes": encoded, "path": "anything.wav"} for encoded in WAVS],
        [{"bytes": None, "path": file} for file in files],
        [{"path": file} for file in files],
    ):
        again = read(cells, folder)
        assert again == rows
        assert [again.read(row) for row in range(3)] == WAVS
    assert read(files, folder).name(1) == "1.wav"


def test_objects_survive_a_parquet_file_as_datasets_writes_it(folder):
    pd.DataFrame({"it": [{"bytes": encoded, "path": None} for encoded in WAVS]}).to_parquet(folder / "train.parquet")
    table = read_table(folder / "train.parquet")
    assert read_media(table, "it", "audio", "train", folder) == read(WAVS)


def test_samples_in_memory_are_read_as_they_are():
    samples = np.random.default_rng(0).uniform(-1, 1, 500).astype(np.float32)
    rows = read([{"path": "a.wav", "array": samples, "sampling_rate": 8000}])
    assert np.array_equal(decode_audio(rows.read(0), 8000, "a"), samples)
    assert rows == read([{"array": samples.tolist(), "sampling_rate": 8000}])  # no time of writing is in it


def test_a_path_that_was_written_as_text_may_lead_out_of_the_folder(folder):
    (folder / "below").mkdir()
    assert read(["../0.wav"], folder / "below") == read(WAVS[:1])
    outside = rf"row 0 has an object in column 'it' whose path leads out of {str(folder / 'below')!r}: "
    for path in ("../0.wav", str(folder / "0.wav"), "x/../../0.wav"):
        with pytest.raises(UsageError, match=outside):
            read([{"bytes": None, "path": path}], folder / "below")
    assert read([{"path": "./0.wav"}], folder) == read(WAVS[:1])


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        ([WAVS[0], None], "row 1 has no sound in column 'it'"),
        (["0.wav", " "], "row 1 has no sound in column 'it'"),
        ([{"bytes": None, "path": None}], "row 0 has no sound in column 'it'"),
        (
            [WAVS[0], "0.wav"],
            "row 1 has the text '0.wav' in column 'it', and row 0 bytes: sounds are all bytes, all files, .*",
        ),
        ([7], "row 0 has the number 7 in column 'it', where sounds are expected .*"),
        ([[0.5]], "row 0 has a list .* in column 'it', where sounds are expected .*"),
        ([{"text": "a"}], "row 0 has an object .* in column 'it', where sounds are expected .*"),
        ([{"array": [[0.5], [0.5]], "sampling_rate": 8000}], "row 0: an object with an array .* one channel .*"),
        ([{"array": [1, 2], "sampling_rate": 8000}], "row 0: an object with an array .* between -1 and 1.*"),
        ([{"array": [0.5], "sampling_rate": "8k"}], "row 0: an object with an array .* sampling_rate; .*"),
        (["0.wav", "3.waw"], "row 1 names '3.waw' in column 'it', and '.*' has no such file.*"),
        (["0.wav", "00.wav"], "row 1 names '00.wav' .* has no such file; did you mean '0.wav'.*"),
        (["a\0b.wav"], "row 0: the file in column 'it' 'a.*b.wav' has a null byte, .*"),
        (["x" * 300 + ".wav"], "row 0: the file in column 'it' .* is too long for a file's name: .*"),
    ],
)
def test_the_first_cell_that_is_none_is_named_by_its_row(folder, cells, line):
    with pytest.raises(UsageError, match=f"^data, split 'train': {line}$"):
        read(cells, folder)


def test_bytes_of_another_kind_are_named_by_their_row_or_file(folder):
    (folder / "0.png").write_bytes(b"none")
    with pytest.raises(UsageError, match=r"^0\.png is no image that can be read \(accepted: PNG, "):
        read(["0.png"], folder, "image")
    with pytest.raises(UsageError, match=r"^row 1 of data, split 'train' is no image that can be read \(accepted: PNG"):
        read([noise_png(0), WAVS[0]], folder, "image")
    with pytest.raises(UsageError, match=r"^row 1 of data, split 'train' is an empty sound$"):
        read([WAVS[0], encode_wav([])])


def test_a_data_set_on_the_hub_has_bytes_in_its_cells():
    with pytest.raises(UsageError, match=r"row 0 names a file in column 'it', '0\.wav', and a data set on the hub has"):
        read(["0.wav"])


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"wav": [WAVS[0]], "text": ["zero"]}, "wav"),
        ({"a": [None, "x.FLAC"], "b": ["x.png", "y.png"]}, "a"),
        ({"clip": [{"bytes": WAVS[0], "path": None}], "text": ["zero"]}, "clip"),
        ({"clip": [{"array": [0.5], "sampling_rate": 8000}], "text": ["zero"]}, "clip"),
        ({"path": ["a.mp3"], "audio": [{"bytes": WAVS[0], "path": None}]}, "audio"),
    ],
)
def test_the_column_of_sounds_is_known_by_its_cells_and_then_by_its_name(columns, found):
    table = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    assert find_media_column(table, "audio", "data") == found


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            {"text": ["zero"], "label": [0]},
            r"data: no column of sounds \(columns: text, label; accepted: bytes, files ",
        ),
        ({"a": ["x.wav"], "b": ["y.wav"]}, r"data: which column has the sounds, 'a' or 'b'\? \(columns: a, b; "),
    ],
)
def test_no_column_or_several_are_refused(columns, line):
    with pytest.raises(UsageError, match=line):
        find_media_column(pd.DataFrame(columns), "audio", "data")
