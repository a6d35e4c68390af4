"""Splits of sounds that are read in parts: the rows of a whole read, in the memory of a part."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdalign.data import table_parts
from kdalign.data.tasks import media_parts
from kdalign.data.tasks.loading import load_table
from kdalign.data.tasks.media_columns import read_media
from kdalign.data.tasks.media_parts import read_media_table, write_media_table
from kdalign.data.tasks.task import DataSource
from kdalign.errors import UsageError
from support.media import noise_wav

ROWS, BYTES = 60, 32_044
"""Rows of a split, and bytes of each of its sounds, of a second at 16 kHz."""


@pytest.fixture
def parts_of_four(monkeypatch):
    """Parts have four sounds or fewer."""
    for module in (table_parts, media_parts):
        monkeypatch.setattr(module, "PARQUET_BYTES", 4 * BYTES)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    cells = [noise_wav(seed, 1.0, 16_000) for seed in range(ROWS)]
    assert {len(cell) for cell in cells} == {BYTES}
    numbers = [None if row == 50 else row for row in range(ROWS)]  # whole numbers in the first parts, not in the last
    table = pd.DataFrame({"id": numbers, "wav": cells, "text": [f"row {row}" for row in range(ROWS)]})
    table.to_parquet(folder / "train.parquet", row_group_size=4)  # a page of one group is read as a whole
    return DataSource(folder)


def read(source, most=None):
    return read_media_table(source, "train", "wav", "audio", "task 'asr'", most)


@pytest.mark.usefixtures("parts_of_four")
def test_the_rows_are_those_of_a_whole_read(source):
    found, whole = read(source), load_table(source, "train")
    media = read_media(whole, "wav", "audio", f"{source}, split 'train'")
    assert list(found.media) == list(media)
    assert found.media.names == media.names
    assert [found.media.read(row) for row in range(ROWS)] == whole["wav"].tolist()
    pd.testing.assert_frame_equal(found.others, whole.drop(columns="wav"))
    assert (found.column, found.place) == ("wav", 1)


@pytest.mark.usefixtures("parts_of_four")
def test_rows_are_read_in_any_order(source):
    found, cells = read(source), load_table(source, "train")["wav"]
    order = np.random.default_rng(0).permutation(ROWS)[:20].tolist()
    assert [found.media.read(row) for row in order] == [cells[row] for row in order]
    assert found.media.take([41, 3]).read(0) == cells[41]


@pytest.mark.usefixtures("parts_of_four")
def test_the_first_rows_alone_are_read(source):
    found = read(source, 6)
    assert (len(found.media), found.others["text"].tolist()[-1]) == (6, "row 5")
    assert len(read(source, ROWS + 1).media) == ROWS


@pytest.mark.usefixtures("parts_of_four")
def test_a_split_is_read_and_written_in_the_memory_of_a_part(source, tmp_path):
    read(source, 1)  # which loads what is imported where it is used
    tracemalloc.start()
    found = read(source)
    write_media_table(tmp_path / "all.parquet", found, found.others, range(ROWS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 * BYTES < peak < ROWS * BYTES / 2
    written = pd.read_parquet(tmp_path / "all.parquet")
    whole = load_table(source, "train")
    assert list(written.columns) == ["id", "wav", "text"]
    assert written["wav"].tolist() == whole["wav"].tolist()
    assert written["text"].tolist() == whole["text"].tolist()
    np.testing.assert_array_equal(written["id"], whole["id"])


@pytest.mark.usefixtures("parts_of_four")
def test_rows_are_written_in_the_order_and_as_often_as_asked(source, tmp_path):
    found, cells = read(source), load_table(source, "train")["wav"]
    write_media_table(tmp_path / "few.parquet", found, pd.DataFrame({"text": ["a", "b", "c"]}), [7, 7, 59])
    written = pd.read_parquet(tmp_path / "few.parquet")
    assert written["wav"].tolist() == [cells[7], cells[7], cells[59]]
    assert list(written.columns) == ["text", "wav"]


def test_a_split_of_sounds_alone_is_written(tmp_path):
    pd.DataFrame({"wav": [noise_wav(0, 0.1, 16_000)] * 3}).to_parquet(tmp_path / "train.parquet")
    found = read(DataSource(tmp_path))
    write_media_table(tmp_path / "again.parquet", found, found.others, range(3))
    assert pd.read_parquet(tmp_path / "again.parquet")["wav"].map(len).tolist() == [3244] * 3


@pytest.mark.usefixtures("parts_of_four")
def test_a_file_that_changes_after_it_was_loaded_is_refused(tmp_path):
    cells = [noise_wav(seed, 1.0, 16_000) for seed in range(9)]
    pd.DataFrame({"wav": cells}).to_parquet(tmp_path / "train.parquet")
    found = read(DataSource(tmp_path))
    pd.DataFrame({"wav": [*cells[:7], cells[0]]}).to_parquet(tmp_path / "train.parquet")
    assert found.media.read(6) == cells[6]
    for row in (7, 8):
        with pytest.raises(UsageError, match="is not as it was when it was loaded: its files changed"):
            found.media.read(row)


@pytest.mark.usefixtures("parts_of_four")
def test_the_row_that_is_no_sound_is_named_by_its_number_in_the_split(tmp_path):
    cells = [noise_wav(seed, 1.0, 16_000) for seed in range(9)]
    pd.DataFrame({"wav": [*cells, b"noise"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"row 9 of .* is no sound that can be read"):
        read(DataSource(tmp_path))
    pd.DataFrame({"wav": [*cells, None]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"row 9 has no sound in column 'wav'"):
        read(DataSource(tmp_path))
    pd.DataFrame({"wav": pd.Series([], dtype=object)}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match="has no rows"):
        read(DataSource(tmp_path))


def test_files_of_one_split_with_other_columns_are_refused(tmp_path):
    cells = [noise_wav(0, 0.1, 16_000)]
    pd.DataFrame({"wav": cells, "text": ["a"]}).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    pd.DataFrame({"wav": cells, "said": ["a"]}).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(UsageError, match="has the columns wav, said, and"):
        read(DataSource(tmp_path))


def test_a_data_set_of_the_hub_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("kdalign.data.tasks.hub._HELD_ROWS", 4)
    features = {"audio": {"sampling_rate": 16_000, "_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    objects = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("audio", objects), ("text", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    cells = [noise_wav(seed, 0.1, 16_000) for seed in range(9)]
    rows = [{"audio": {"bytes": cell, "path": None}, "text": f"row {row}"} for row, cell in enumerate(cells)]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "set" / "train.parquet")
    found = read_media_table(DataSource(dataset=str(tmp_path / "set")), "train", "audio", "audio", "task 'asr'")
    assert [found.media.read(row) for row in range(9)] == cells
    assert found.others["text"].tolist() == [f"row {row}" for row in range(9)]
