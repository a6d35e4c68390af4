"""A run that was changed after it ended is not put into a table."""

import json
import shutil
from dataclasses import replace

import pytest

from kdalign.comparison.compare import compare
from kdalign.errors import UsageError
from kdalign.runs.folder import RunFolder, seal_of
from kdalign.runs.integrity import check_weights, read_checked
from kdalign.runs.record import read_record
from support.records import run
from support.tiny import one_line

SMALL = ("recipe.yaml", "inputs.json", "plan.json", "history.jsonl", "predictions/validation.parquet", "student/x.json")
WEIGHTS = ("student/model.safetensors", "projections.safetensors")


@pytest.fixture
def whole(tmp_path):
    """A finished run with a file of each kind."""
    path = run(tmp_path / "run", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    for name in (*SMALL, *WEIGHTS, "log.txt", "checkpoints/step-1/model.safetensors"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode())
    RunFolder(path).write_record(read_record(path))
    return path


@pytest.mark.parametrize("name", SMALL)
def test_a_changed_file_is_named_with_its_run_and_no_table_is_printed(kdalign, whole, name):
    (whole / name).write_bytes(name.encode() + b" ")
    status, out, err = kdalign("compare", whole)
    assert (status, out) == (2, "")
    line = one_line(err)
    assert repr(str(whole)) in line
    assert f"{name} was changed" in line


def test_the_card_is_its_readers_to_edit(kdalign, whole):
    card = whole / "student/README.md"
    card.write_text("a card")
    RunFolder(whole).write_record(read_record(whole))
    assert "student/README.md" in read_record(whole).files
    card.write_text("a card\n\nLicence: mine.\n")
    status, _, err = kdalign("compare", whole)
    assert status == 0, err


@pytest.mark.parametrize("name", SMALL)
def test_a_missing_file_is_named_with_its_run(kdalign, whole, name):
    (whole / name).unlink()
    status, out, err = kdalign("compare", whole)
    assert (status, out) == (2, "")
    assert f"{str(whole)!r}: {name} is missing" in one_line(err)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_looked_at_when_the_run_is_verified_alone(whole, name):
    (whole / name).write_bytes(b"others")
    record = read_checked(whole)
    assert compare([whole]).rows
    with pytest.raises(UsageError, match=f"{name} was changed"):
        check_weights(whole, record)
    (whole / name).unlink()
    with pytest.raises(UsageError, match=f"{name} is missing"):
        check_weights(whole, record)


def test_logs_and_checkpoints_are_no_part_of_what_a_run_leaves(whole):
    (whole / "log.txt").write_text("more")
    shutil.rmtree(whole / "checkpoints")
    check_weights(whole, read_checked(whole))


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["scores"]["validation"]["student"][0].update(value=99.0),
        lambda tree: tree["scores"]["validation"]["student"][0].update(low=79.5),
        lambda tree: tree["student"].update(parameters=1),
        lambda tree: tree["files"].pop("plan.json"),
        lambda tree: tree["recipe"]["train"].update(seed=7),
        lambda tree: tree.update(seconds=1.0),
        lambda tree: tree.update(seal="0" * 64),
    ],
)
def test_a_record_that_was_changed_no_longer_fits_its_seal(kdalign, whole, change):
    tree = json.loads((whole / "record.json").read_text())
    change(tree)
    (whole / "record.json").write_text(json.dumps(tree))
    for path in (whole, whole / "record.json", whole.parent):
        status, out, err = kdalign("compare", path)
        assert (status, out) == (2, "")
        assert f"{str(whole)!r}: record.json was changed" in one_line(err)


def test_a_record_that_was_only_written_otherwise_still_fits_its_seal(whole):
    tree = json.loads((whole / "record.json").read_text())
    (whole / "record.json").write_text(json.dumps(dict(reversed(tree.items())), indent=None))
    assert read_checked(whole) == read_record(whole)


def test_a_seal_is_the_hash_of_all_else():
    # printf '{"a":[1,2.5],"b":"\\u00e9"}' | sha256sum
    expected = "60d4fe7d84d09285a774fa6c850ed0e739e0153890529471751ae4df4e1df886"
    assert seal_of({"b": "é", "seal": "whatever", "a": [1, 2.5]}) == expected


def test_a_record_of_an_older_version_has_no_seal_and_is_read_with_a_note(whole):
    tree = json.loads((whole / "record.json").read_text())
    del tree["seal"]
    (whole / "record.json").write_text(json.dumps(tree))
    notes = [note for note in compare([whole]).notes if "seal" in note]
    assert notes == ["records of an older kdalign, without a seal that would reveal an edited number: run"]
    (whole / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match=r"plan\.json was changed"):
        compare([whole])


def test_a_sealed_record_has_no_note(whole):
    assert not [note for note in compare([whole]).notes if "seal" in note]


def test_writing_a_record_again_seals_it_again(whole):
    (whole / "plan.json").write_text("{}")
    record = read_record(whole)
    RunFolder(whole).write_record(replace(record, seconds=7.0))
    assert read_checked(whole).seconds == 7.0
    assert read_checked(whole).seal != record.seal
