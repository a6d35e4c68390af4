"""Shards: named by their checksums, written whole or not at all, and found by keys."""

import os

import pytest
import torch

from kdalign.errors import UsageError
from kdalign.teachers import cache_files
from kdalign.teachers.cache_files import CacheFolder, CacheIndex, ShardFacts, ShardWriter


def rows(first, n):
    """Rows whose numbers of lines differ, and some without a line."""
    keys = [bytes([number] * 15 + [0]) for number in range(first, first + n)]
    arrays = [
        {
            "classes": torch.full((1, 2), float(number)),
            "hidden": torch.full((number % 3, 4), number, dtype=torch.bfloat16),
        }
        for number in range(first, first + n)
    ]
    return keys, arrays


def write(path, *shares):
    writer = ShardWriter(CacheFolder(path))
    for first, n in shares:
        writer.add(*rows(first, n), ShardFacts(rows=n, tokens=2 * n))
    writer.flush()
    return writer.written


def test_each_row_of_several_writers_is_read_as_it_was_written(tmp_path):
    folder = CacheFolder(tmp_path)
    folder.begin({"format": 1})
    write(tmp_path, (10, 5), (20, 4))
    write(tmp_path, (40, 3))
    index = CacheIndex(folder)
    assert (len(index), len(folder.files), index.facts.tokens) == (12, 2, 24)
    for first, n in ((40, 3), (20, 4), (10, 5)):
        for key, arrays in zip(*rows(first, n), strict=True):
            assert key in index
            found = index.read(key, ["hidden", "classes", "nothing"])
            assert found.keys() == {"hidden", "classes"}
            for name, lines in arrays.items():
                assert torch.equal(found[name], lines)
    assert index.read(bytes(16), ["classes"]) is None
    assert index.facts.bytes == sum(file.stat().st_size for file in folder.files)


def test_a_large_shard_is_written_before_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_files, "SHARD_BYTES", 20)
    CacheFolder(tmp_path).begin({"format": 1})
    write(tmp_path, (10, 2), (20, 2))
    assert len(CacheFolder(tmp_path).files) == 2


def test_a_damaged_shard_is_named_and_the_others_are_not(tmp_path):
    folder = CacheFolder(tmp_path)
    folder.begin({"format": 1})
    write(tmp_path, (10, 5))
    write(tmp_path, (40, 3))
    folder.check()
    file = folder.files[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert folder.damaged() == [file]
    with pytest.raises(UsageError, match=f"{file.name}.*damaged.*their rows are computed again"):
        folder.check()


def test_damaged_shards_are_removed_and_the_others_stay(tmp_path):
    folder = CacheFolder(tmp_path)
    folder.begin({"format": 1})
    write(tmp_path, (10, 5))
    (broken,) = folder.files
    write(tmp_path, (40, 3))
    (whole,) = {*folder.files} - {broken}
    broken.write_bytes(broken.read_bytes()[:20])
    with pytest.raises(UsageError, match=f"{broken.name}' cannot be opened .*verify .* --remove"):
        CacheIndex(folder)
    assert folder.remove_damaged() == [broken.name]
    assert folder.files == [whole]
    assert len(CacheIndex(folder)) == 3


@pytest.mark.parametrize(("content", "state"), [(None, "missing"), ("{", "damaged"), ("[]", "damaged")])
def test_shards_without_their_description_are_said_with_the_mend(tmp_path, content, state):
    folder = CacheFolder(tmp_path)
    folder.begin({"format": 1})
    write(tmp_path, (10, 5))
    file = tmp_path / "cache.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UsageError, match=rf"cache\.json' is {state}, .*: remove the folder, and the next run"):
        _ = folder.meta


def test_what_a_killed_writer_left_is_no_shard_and_goes_away(tmp_path):
    folder = CacheFolder(tmp_path)
    folder.begin({"format": 1})
    write(tmp_path, (10, 5))
    left = tmp_path / f".{folder.files[0].name}.123.tmp"
    left.write_bytes(b"half")
    assert len(CacheIndex(folder)) == 5
    folder.remove_unfinished()
    assert not left.exists()
    assert len(CacheIndex(folder)) == 5


def test_a_shard_of_another_cache_is_not_read(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for number, path in enumerate((one, other)):
        path.mkdir()
        CacheFolder(path).begin({"format": 1, "weights": number})
    write(one, (10, 5))
    (shard,) = CacheFolder(one).files
    shard.rename(other / shard.name)
    assert CacheFolder(other).damaged() == []
    with pytest.raises(UsageError, match="was not written for the cache"):
        CacheIndex(CacheFolder(other))


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no teacher outputs"):
        _ = CacheFolder(tmp_path).meta


def test_a_pipe_that_is_called_like_a_shard_is_none_and_is_not_waited_for(tmp_path):
    folder = CacheFolder(tmp_path)
    folder.begin({"format": 1})
    write(tmp_path, (10, 5))
    os.mkfifo(tmp_path / "shard-1.safetensors")
    assert folder.damaged() == []
    assert len(CacheIndex(folder)) == 5
