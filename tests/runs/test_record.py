"""The run folder: complete once its record lies there, and readable by that alone."""

import hashlib
import json
import os
from dataclasses import replace

import pytest

from kdalign.errors import UsageError
from kdalign.files import atomic_file, check_writable, sha256, write_json, write_text
from kdalign.runs.folder import RunFolder, Walk, find_runs
from kdalign.runs.record import SCHEMA, ModelRecord, RunRecord, read_record

ACCURACY = {
    "metric": "accuracy",
    "value": 0.1 + 0.2,
    "unit": "%",
    "n": 3,
    "higher_is_better": True,
    "signature": "hand",
    "low": None,
    "high": None,
}
STUDENT = ModelRecord("layers 1 3 of t", "0" * 16, 1000, 0.004, "trained", 1.5)
RECORD = RunRecord(
    schema=SCHEMA,
    version="0.1.0",
    created="2025-01-01T00:00:00+00:00",
    task="sst2",
    metrics=("accuracy", "f1"),
    recipe={"teacher": "t", "align": {"weights": None}, "train": {"seed": 0}},
    student=STUDENT,
    teacher=ModelRecord("t", "1" * 16, 2000, 0.008, "its own"),
    data={"reported": {"validation": {"n": 3, "fingerprint": "ab"}}},
    scores={"validation": {"student": [ACCURACY], "teacher": [], "agreement": None}},
    training={"steps": 2, "seconds": 0.5, "examples": 6},
    environment={"torch": "2"},
    seconds=1 / 3,
)


def started(path) -> RunFolder:
    folder = RunFolder(path)
    folder.begin("teacher: t\n", {}, keep=False)
    return folder


def finished(path) -> RunFolder:
    folder = started(path)
    folder.write_record(RECORD)
    return folder


def test_a_record_is_read_as_it_was_written(tmp_path):
    finished(tmp_path / "run")
    read = read_record(tmp_path / "run")
    assert replace(read, files={}) == RECORD
    assert read_record(tmp_path / "run" / "record.json") == read


def test_a_record_without_a_teacher_is_read_as_it_was_written(tmp_path):
    started(tmp_path).write_record(replace(RECORD, teacher=None))
    assert read_record(tmp_path).teacher is None


def test_a_record_holds_the_hash_of_every_other_file_but_log_and_checkpoints(tmp_path):
    folder = started(tmp_path)
    for name in ("student/model.safetensors", "predictions/validation.parquet", "checkpoints/step-1/x.json", "log.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    folder.write_record(RECORD)
    folder.write_record(RECORD)  # a record does not hold its own hash
    files = read_record(tmp_path).files
    assert set(files) == {"recipe.yaml", "inputs.json", "student/model.safetensors", "predictions/validation.parquet"}
    assert files["recipe.yaml"] == hashlib.sha256(b"teacher: t\n").hexdigest()
    assert files["student/model.safetensors"] == hashlib.sha256(b"student/model.safetensors").hexdigest()


def test_a_folder_is_complete_with_its_record_and_not_before(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert (folder.started, folder.complete) == (False, False)
    folder.begin("teacher: t\n", {}, keep=False)
    assert (folder.started, folder.complete) == (True, False)
    folder.write_record(RECORD)
    assert (folder.started, folder.complete) == (True, True)


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    started(tmp_path / "run")
    with pytest.raises(
        UsageError, match=rf"is not finished; `kdalign distill --out {tmp_path}/run --resume` resumes it"
    ):
        read_record(tmp_path / "run")


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_where_no_run_is_the_line_says_so(tmp_path, name):
    with pytest.raises(UsageError, match="no run at"):
        read_record(tmp_path / name)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, None, "1"])
def test_a_record_of_another_schema_is_refused(tmp_path, schema):
    write_json(tmp_path / "record.json", {**RECORD.to_json(), "schema": schema})
    with pytest.raises(UsageError, match=f"schema {schema!r}; this kdalign reads {SCHEMA}"):
        read_record(tmp_path)


def test_a_recipe_of_another_version_is_one_line_that_says_which():
    record = replace(RECORD, recipe={"teacher": "t", "data": {"task": ["sst2"], "mask": 1}}, version="9.9")
    with pytest.raises(UsageError, match=r"task 'sst2', made by kdalign 9\.9, cannot be read: .* key 'data\.mask'"):
        record.parsed_recipe()
    record = replace(record, recipe={**record.recipe, "out": "runs/x"})
    with pytest.raises(UsageError, match=r"^the run 'runs/x', made by kdalign 9\.9"):
        record.parsed_recipe()
    with pytest.raises(UsageError, match="a recipe is a mapping"):
        replace(record, recipe=None).parsed_recipe()


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in RECORD.to_json().items() if name != key}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        json.dumps(RECORD.to_json())[:-40],
        json.dumps(without("created")),
        json.dumps(without("student")),
        json.dumps(without("metrics")),
        json.dumps({**RECORD.to_json(), "surprise": 1}),
        json.dumps({**RECORD.to_json(), "student": {"source": "x"}}),
        json.dumps({**RECORD.to_json(), "student": None}),
        json.dumps({**RECORD.to_json(), "teacher": "x"}),
        json.dumps({**RECORD.to_json(), "metrics": 3}),
    ],
)
def test_a_file_that_is_no_record_gives_one_line_that_names_it(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UsageError, match=r"record\.json") as error:
        read_record(tmp_path)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_no_record(tmp_path):
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"record\.json', line 1: not UTF-16"):
        read_record(tmp_path)


def test_history_is_read_in_the_order_it_was_written(tmp_path):
    folder = started(tmp_path)
    assert folder.read_history() == []
    events = [{"kind": "step", "step": step, "parts": {"hard": 1 / step}} for step in (1, 2, 3)]
    for event in events:
        folder.append_history(event)
    assert folder.read_history() == events


def test_cutting_the_history_forgets_what_came_after_the_checkpoint(tmp_path):
    folder = started(tmp_path)
    for step in (1, 2, 3, 4):
        folder.append_history({"step": step})
    folder.cut_history(2)
    assert [event["step"] for event in folder.read_history()] == [1, 2]
    folder.append_history({"step": 3})
    assert [event["step"] for event in folder.read_history()] == [1, 2, 3]
    folder.cut_history(-1)
    assert folder.read_history() == []


@pytest.mark.parametrize("cut", range(1, 33))
def test_a_line_that_a_killed_run_left_half_written_is_passed_over(tmp_path, cut):
    folder = started(tmp_path)
    whole = {"step": 1, "parts": {"hard": 1}}
    folder.append_history(whole)
    line = json.dumps({**whole, "step": 2})
    assert len(line) == 33
    with folder.history.open("a") as file:
        file.write(line[:cut])
    assert folder.read_history() == [whole]
    folder.cut_history(1)
    folder.append_history({"step": 2})
    assert folder.read_history() == [whole, {"step": 2}]


FILES = ("student/config.json", "predictions/validation.parquet", "checkpoints/step-1/x.json")
LOOSE = ("history.jsonl", "log.txt", "plan.json", "projections.safetensors")


@pytest.mark.parametrize("keep", [False, True])
def test_a_run_begun_over_another_clears_it_away_unless_it_goes_on(tmp_path, keep):
    folder = finished(tmp_path)
    for name in (*FILES, *LOOSE, "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    folder.begin("teacher: other\n", {}, keep=keep)
    assert not folder.complete
    # What goes on keeps what it began with.
    assert folder.recipe.read_text() == ("teacher: t\n" if keep else "teacher: other\n")
    assert {name for name in (*FILES, *LOOSE) if (tmp_path / name).exists()} == ({*FILES, *LOOSE} if keep else set())
    assert (tmp_path / "notes.txt").read_text() == "old", "what is no part of a run is not touched"


def test_complete_runs_are_found_by_name_below_a_folder(tmp_path):
    for name in ("b", "a", "group/z", "group/y"):
        finished(tmp_path / name)
    started(tmp_path / "unfinished")
    finished(tmp_path / "unfinished" / "checkpoints" / "step-1")
    finished(tmp_path / "a" / "inner")
    (tmp_path / "file.txt").write_text("")
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["a", "b", "group/y", "group/z"]
    assert list(find_runs(tmp_path / "a")) == [tmp_path / "a"]
    assert list(find_runs(tmp_path / "nowhere")) == []
    assert list(find_runs(tmp_path / "file.txt")) == []


def test_a_file_is_whole_or_not_there(tmp_path):
    file = tmp_path / "deep" / "file.txt"

    def fail_half_way():
        with atomic_file(file) as temporary:
            temporary.write_text("half")
            assert temporary.parent == file.parent, "renaming works inside one file system"
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        fail_half_way()
    assert list(file.parent.iterdir()) == []
    write_text(file, "old")
    with pytest.raises(RuntimeError, match="disk is full"):
        fail_half_way()
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]
    write_text(file, "new — été")
    assert file.read_text(encoding="utf-8") == "new — été"


def test_a_number_that_json_does_not_know_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_hash_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4


def test_a_folder_that_cannot_be_made_is_refused_and_none_is_made(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        check_writable(tmp_path / "file" / "run")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is a file"):
        check_writable(tmp_path / "dangling" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="permission denied"):
        check_writable(tmp_path / "run")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["student", "checkpoints", "predictions"])
def test_a_run_is_found_whatever_its_folder_is_called(tmp_path, name):
    finished(tmp_path / name)
    assert list(find_runs(tmp_path)) == [tmp_path / name]


def test_folders_that_lead_in_a_circle_by_links_are_looked_into_once(tmp_path):
    finished(tmp_path / "runs" / "a")
    for name in ("up", "again", "b"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / ("runs/a" if name == "b" else "runs"))
    (tmp_path / "linked").symlink_to(tmp_path / "runs")
    assert list(find_runs(tmp_path / "runs")) == [tmp_path / "runs" / "a"], "not by the link b beside it"
    assert list(find_runs(tmp_path / "linked")) == [tmp_path / "linked" / "a"]
    walk = Walk(tmp_path / "runs")
    assert [inner.name for inner in walk.inside(tmp_path / "runs")] == ["a"]
    assert walk.inside(tmp_path / "runs") == []


def test_a_folder_with_more_folders_than_runs_can_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kdalign.runs.folder.MOST_FOLDERS", 5)
    for number in range(6):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(UsageError, match="more than 5 folders below"):
        list(find_runs(tmp_path))


def test_pipes_and_devices_are_no_records(tmp_path):
    os.mkfifo(tmp_path / "record.json")
    (tmp_path / "x.json").symlink_to("/dev/zero")
    for place in (tmp_path, tmp_path / "record.json", tmp_path / "x.json"):
        with pytest.raises(UsageError):
            read_record(place)
    assert list(find_runs(tmp_path)) == []


def test_a_history_is_read_without_being_held_whole(tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(1, 4):
        folder.append_history({"kind": "step", "step": step})
    folder.append_history({"kind": "evaluation", "step": 3, "accuracy": 50.0, "samples": ["x"]})
    with folder.history.open("a") as file:
        file.write('{"kind": "evaluation", "step"')
    assert folder.watched == [{"step": 3, "accuracy": 50.0}]
    assert [event["step"] for event in folder.read_history()] == [1, 2, 3, 3]


def test_the_beginning_of_a_history_is_checked_and_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_history({"kind": "step", "step": 1})
    seal = folder.history_seal()
    folder.append_history({"kind": "step", "step": 2})
    assert folder.history_fits(seal)
    assert not folder.history_fits(seal | {"bytes": seal["bytes"] + 1})
    folder.cut_history_to(seal["bytes"])
    assert [event["step"] for event in folder.read_history()] == [1]
    assert folder.history_seal() == seal
