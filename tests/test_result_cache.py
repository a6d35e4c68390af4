"""Results that are computed once, and read by everything that decides them."""

import json
import os
from pathlib import Path
from threading import Event, Thread, current_thread

import numpy as np
import pytest
import safetensors.numpy

from kdalign import result_cache
from kdalign.environment import cache_folder
from kdalign.files import draft_of
from kdalign.result_cache import KeptResult, find_result, keep_result, release_pages


class Computing:
    """Computes an array, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"numbers": np.array([self.times, 2.5]), "whole": np.arange(3)}


def test_the_second_time_a_result_is_read_bit_for_bit_with_its_types():
    compute = Computing()
    first, known = keep_result("tests", {"weights": "a"}, compute)
    again, read = keep_result("tests", {"weights": "a"}, compute)
    assert (known, read, compute.times) == (False, True, 1)
    for name, values in first.items():
        assert (again[name].dtype, again[name].tolist()) == (values.dtype, values.tolist())


def test_whatever_decides_a_result_is_in_its_key_the_code_too(monkeypatch):
    compute = Computing()
    keep_result("tests", {"weights": "a"}, compute)
    keep_result("tests", {"weights": "b"}, compute)
    keep_result("tests", {"weights": "a", "tokens": "t"}, compute)
    monkeypatch.setattr(result_cache, "code_fingerprint", lambda: "other code")
    keep_result("tests", {"weights": "a"}, compute)
    assert compute.times == 4


@pytest.mark.parametrize("damage", ["a flipped bit", "half of it", "nothing", "no digest"])
def test_a_damaged_file_is_computed_again(damage):
    compute = Computing()
    keep_result("tests", {}, compute)
    [file] = (cache_folder() / "tests").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if damage == "no digest":
        file.with_suffix(".sha256").unlink()
    else:
        file.write_bytes({"a flipped bit": data, "half of it": data[: len(data) // 2], "nothing": b""}[damage])
    assert keep_result("tests", {}, compute)[1] is False
    assert compute.times == 2
    assert keep_result("tests", {}, compute)[1] is True


def test_a_result_that_is_read_is_mapped_and_not_copied():
    keep_result("tests", {}, lambda: {"many": np.arange(1000), "none": np.zeros((0, 3), dtype=np.float32)})
    again, _ = keep_result("tests", {}, dict)
    assert isinstance(again["many"], np.memmap)
    assert not again["many"].flags.writeable
    assert again["none"].shape == (0, 3)


def test_the_results_that_were_not_read_for_longest_make_room_for_new_ones(monkeypatch):
    compute = Computing()
    for number in range(3):
        keep_result("tests", {"number": number}, compute)
        [newest] = [file for file in (cache_folder() / "tests").glob("*.safetensors") if file.stat().st_mtime > 1000]
        os.utime(newest, (number, number))
    keep_result("tests", {"number": 0}, compute)  # which is read last now
    monkeypatch.setattr(result_cache, "MOST_BYTES", 2 * newest.stat().st_size + 50)
    keep_result("tests", {"number": 3}, compute)
    assert compute.times == 4
    kept = [keep_result("tests", {"number": number}, compute)[1] for number in (0, 3)]
    assert kept == [True, True]
    assert keep_result("tests", {"number": 1}, compute)[1] is False


def test_a_cache_that_others_fill_is_read(monkeypatch):
    compute = Computing()
    keep_result("tests", {}, compute)

    def refuse(*_):
        raise PermissionError("a read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert keep_result("tests", {}, compute)[1] is True


def test_a_file_that_is_removed_while_it_is_read_is_computed_again(monkeypatch):
    compute = Computing()
    keep_result("tests", {}, compute)
    [file] = (cache_folder() / "tests").glob("*.safetensors")
    monkeypatch.setattr(os, "utime", lambda path: path.unlink())  # between its digest and its arrays
    assert keep_result("tests", {}, compute)[1] is False
    assert compute.times == 2
    assert file.is_file()


def test_two_processes_of_one_number_write_apart():
    file = cache_folder() / "tests" / "one.safetensors"
    assert draft_of(file) != draft_of(file)


def test_a_result_that_another_process_has_written_meanwhile_is_not_removed_for_ones_own(monkeypatch):
    values = np.zeros(1000, dtype=np.int32)
    monkeypatch.setattr(result_cache, "MOST_BYTES", 5000)
    kept = find_result("tests", {})
    kept.write({"whole": values})
    removed = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: removed.append(path))
    kept.write({"whole": values})
    assert kept.file not in removed


def test_what_killed_processes_were_writing_is_removed_after_a_day():
    keep_result("tests", {"number": 0}, Computing())
    drafts = [cache_folder() / "tests" / name for name in (".old.safetensors.1.tmp", ".new.safetensors.2.tmp")]
    for draft in drafts:
        draft.write_bytes(b"half")
    os.utime(drafts[0], (0, 0))
    keep_result("tests", {"number": 1}, Computing())
    assert [draft.exists() for draft in drafts] == [False, True]


def test_a_cache_that_cannot_be_written_keeps_nothing_and_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path / "file"))
    compute = Computing()
    for _ in range(2):
        result, known = keep_result("tests", {}, compute)
        assert (known, result["whole"].tolist()) == (False, [0, 1, 2])
    assert compute.times == 2


def test_keys_are_of_content_not_of_order():
    compute = Computing()
    keep_result("tests", json.loads('{"a": 1, "b": 2}'), compute)
    assert keep_result("tests", json.loads('{"b": 2, "a": 1}'), compute)[1]


def write_in_parts(content, parts):
    kept = find_result("tests", content)
    with kept.write_in_parts() as draft:
        draft.append("bytes", np.zeros(0, dtype=np.uint8))
        for part in parts:
            draft.append("numbers", part)
            draft.append("passing", part.astype(np.int32))
            draft.append("bytes", part.astype(np.uint8))
        draft.append("sum", draft.read("passing").astype(np.int64).sum(keepdims=True))
        assert draft.last("numbers") == (parts[-1][-1] if parts else None)
        draft.remove("passing") if parts else None
        draft.append("copy", np.arange(3.0))
    return kept


def test_a_result_that_is_written_in_parts_is_read_as_one():
    parts = [np.arange(5), np.arange(5, 9), np.arange(9, 10)]
    found = write_in_parts({}, parts).read()
    assert found.keys() == {"numbers", "bytes", "sum", "copy"}
    assert (found["numbers"].dtype, found["numbers"].tolist()) == (np.int64, list(range(10)))
    assert (found["bytes"].dtype, found["bytes"].tolist()) == (np.uint8, list(range(10)))
    assert found["sum"].tolist() == [45]
    assert found["copy"].tolist() == [0, 1, 2]
    assert all(values.flags.aligned for values in found.values())
    assert safetensors.numpy.load_file(find_result("tests", {}).file)["sum"].tolist() == [45]
    assert [file.suffix for file in sorted((cache_folder() / "tests").iterdir())] == [".safetensors", ".sha256"]


def test_of_several_that_need_a_result_in_parts_one_writes_it_and_the_others_wait(monkeypatch):
    looked, writers, found = Event(), [], []
    read = KeptResult.read
    kept = find_result("tests", {})

    def read_and_tell(self):
        known = read(self)
        if current_thread() is second:
            looked.set()
        return known

    def write(draft):
        writers.append(current_thread())
        if current_thread() is not second:
            second.start()
            assert looked.wait(60), "the second has found nothing, and would write, too"
        draft.append("numbers", np.arange(3))

    second = Thread(target=lambda: found.append(kept.keep_in_parts(write)))
    monkeypatch.setattr(KeptResult, "read", read_and_tell)
    found.append(kept.keep_in_parts(write))
    second.join()
    assert (len(writers), [each["numbers"].tolist() for each in found]) == (1, [[0, 1, 2]] * 2)
    assert [file.suffix for file in sorted((cache_folder() / "tests").iterdir())] == [".safetensors", ".sha256"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_files_may_be_read_by_whom_the_umask_lets():
    before = os.umask(0o027)
    try:
        keep_result("tests", {}, Computing())
        write_in_parts({"other": 1}, [np.arange(3)])
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (cache_folder() / "tests").iterdir()} == {0o640}


def test_a_result_whose_writing_fails_leaves_nothing():
    with pytest.raises(AssertionError, match="one type"):
        write_in_parts({}, [np.arange(5), np.arange(2.0)])
    assert list((cache_folder() / "tests").iterdir()) == []


def test_a_result_in_parts_that_is_larger_than_all_others_may_be_is_kept_alone(monkeypatch):
    keep_result("tests", {"number": 0}, Computing())
    monkeypatch.setattr(result_cache, "MOST_BYTES", 20)
    assert write_in_parts({"number": 1}, [np.arange(9)]).read()["sum"].tolist() == [36]
    assert len(list((cache_folder() / "tests").glob("*.safetensors"))) == 1


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what is resident")
def test_a_pass_over_a_mapped_array_may_give_its_memory_back():
    def resident():
        return sum(int(line.split()[1]) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:2])

    values = write_in_parts({}, [np.arange(4_000_000)]).read()["numbers"]
    assert values[1000:].sum() == 4_000_000 * 3_999_999 // 2 - 999 * 1000 // 2
    before = resident()
    release_pages(values[5:], np.arange(3))
    assert before - resident() > 25_000, "kB of 31,250"
    assert values[-1] == 3_999_999
