"""What an ablation keeps is unpacked within a bound, and nothing in it is believed before it was looked at."""

import base64
import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from kdalign.data.tasks import find_task
from kdalign.errors import UsageError
from kdalign.metrics.retrieval import pack_ranks
from kdalign.runs.ablation_spec import build_ablation, read_ablation, write_ablation
from kdalign.runs.archive import (
    _LARGEST,
    ROUNDING,
    _packed,
    _seal_of,
    _shortened,
    _unpacked,
    archive_run,
    read_all_archived,
    read_archived,
)
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import Predictions, TokenPredictions, write_predictions, write_token_predictions
from kdalign.runs.record import read_record
from support.records import run


@pytest.fixture
def kept(tmp_path):
    """A trial, the folder in which its result is kept, and the result as a tree."""
    write_ablation(build_ablation(None, {"teacher": "t", "data.task": "sst2"}, arms="labels", seeds="1"), tmp_path)
    [trial] = read_ablation(tmp_path).trials(tmp_path)
    out = Path(trial.recipe.out)
    run(out, "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    labels = np.arange(10) % 2
    logits = np.eye(2, dtype=np.float32)[labels]
    task = find_task("sst2", str(tmp_path))
    write_predictions(RunFolder(out).predictions("validation"), task, Predictions(logits, labels), labels, None)
    record = read_record(out)
    record.recipe.clear()
    record.recipe.update(trial.recipe.model_dump(mode="json"))
    RunFolder(out).write_record(record)
    folder = tmp_path / "kept"
    archive_run(trial, folder)
    return trial, folder, json.loads(unzipped(trial, folder))


def unzipped(trial, folder):
    unpacker = zlib.decompressobj(zdict=gzip.decompress((folder / "common.json.gz").read_bytes()))
    return unpacker.decompress((folder / trial.file).read_bytes())


def put(trial, folder, tree):
    """Keep a tree, sealed as anybody can seal it."""
    tree.pop("seal", None)
    content = json.dumps({**tree, "seal": _seal_of(tree)}).encode()
    packer = zlib.compressobj(9, zdict=gzip.decompress((folder / "common.json.gz").read_bytes()))
    (folder / trial.file).write_bytes(packer.compress(content) + packer.flush())


def test_the_results_of_a_task_file_are_read_where_the_file_is_not(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("kind: summarization\ncolumns: [a, b]\n")
    flags = {"teacher": "t", "data.task": str(file), "on_policy.share": 0.5, "train.max_steps": 6}
    write_ablation(build_ablation(None, flags, arms="soft", seeds="1"), tmp_path)
    [trial] = read_ablation(tmp_path).trials(tmp_path)
    out = run(Path(trial.recipe.out), "mine", {"ppl": 5.0}, {"ppl": 4.0})
    tokens = np.full(10, 3)
    said = TokenPredictions(tokens * 1.0, tokens, np.zeros(30, dtype=int))
    write_token_predictions(RunFolder(out).predictions("validation"), said, said)
    record = read_record(out)
    record.recipe.clear()
    record.recipe.update(trial.recipe.model_dump(mode="json"))
    RunFolder(out).write_record(record)
    archive_run(trial, tmp_path / "kept")
    file.unlink()
    [result] = read_all_archived(tmp_path)
    assert result.record.parsed_recipe().objective.temperature == 1  # the default of texts, not of classes
    answers = result.answers["validation"]
    assert (answers["agreed"].tolist(), answers["teacher_nll"].tolist()) == ([3] * 10, [3.0] * 10)
    changed = tmp_path / "ablation.yaml"
    changed.write_text(changed.read_text().partition("\n")[2].replace("max_steps: 6", "max_steps: 7"))  # no checksum
    with pytest.raises(UsageError, match=r"of another recipe, train\.max_steps differ"):
        read_all_archived(tmp_path)


def test_what_is_kept_is_read_again(kept):
    trial, folder, tree = kept
    put(trial, folder, tree)
    assert read_archived(trial, folder).answers["validation"]["prediction"].tolist() == [0, 1] * 5


def test_packed_ranks_are_kept_whole_and_scores_to_four_digits(tmp_path):
    ranks = pack_ranks(np.array([0, 3, 999]), np.array([7, 0, 998]))
    for given, precision in ((ranks, 0), (ranks + 0.5, ROUNDING), (np.array([0.123456, -3.0, np.nan]), ROUNDING)):
        read = _unpacked(_packed("prediction", given, tmp_path), tmp_path)
        np.testing.assert_allclose(read, given, rtol=precision)
    assert _shortened(np.arange(2**14 + 1.0)).tolist() == list(range(2**14 + 1))


COLUMN = base64.b64encode(b"\0" * 16).decode()
HOSTILE = {
    "no base64": ({"prediction": {"dtype": "<i4", "values": "§§§"}}, "ASCII"),
    "base64 with more": ({"prediction": {"dtype": "<i4", "values": COLUMN[:4] + "!" + COLUMN[4:]}}, "base64"),
    "another length": ({"prediction": {"dtype": "<i4", "values": COLUMN}}, "of other lengths: prediction 4"),
    "no whole numbers": ({"prediction": {"dtype": "<i4", "values": "AAAA"}}, "reshape"),
    "objects": ({"prediction": {"dtype": "O", "values": COLUMN}}, "a column of 'O'"),
    "a path": ({"prediction": {"dtype": "<i4", "file": "../../x.gz"}}, "not the name of a shared column"),
    "a list": ([], "list"),
    "no split": (None, "NoneType"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_columns_that_are_none_are_refused_in_one_line(kept, name):
    trial, folder, tree = kept
    columns, said = HOSTILE[name]
    tree["answers"]["validation"] = columns
    put(trial, folder, tree)
    with pytest.raises(UsageError) as error:
        read_archived(trial, folder)
    assert said in str(error.value)
    assert trial.file in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("answers", {}),
        ("answers", []),
        ("inputs", [1]),
        ("inputs", {"train": 1}),
        ("watched", {"step": 1}),
        ("watched", [{"step": "1"}]),
        ("scores", None),
        ("metrics", "accuracy"),
    ],
)
def test_a_part_of_another_kind_is_refused_in_one_line(kept, key, value):
    trial, folder, tree = kept
    put(trial, folder, tree | {key: value})
    with pytest.raises(UsageError) as error:
        read_archived(trial, folder)
    assert "\n" not in str(error.value)


def test_a_file_of_kilobytes_that_stands_for_gigabytes_is_not_unpacked(kept):
    trial, folder, tree = kept
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(_LARGEST // 2**20 + 2)) + packer.flush()
    (folder / trial.file).write_bytes(bomb)
    with pytest.raises(UsageError, match="unpacks to more than"):
        read_archived(trial, folder)
    put(trial, folder, tree)
    whole = (folder / trial.file).read_bytes()
    for changed, said in ((whole[:-9], "cut off"), (whole + b"more", "follows")):
        (folder / trial.file).write_bytes(changed)
        with pytest.raises(UsageError, match=said):
            read_archived(trial, folder)
    (folder / trial.file).write_bytes(whole)
    (folder / "common.json.gz").write_bytes(gzip.compress(bytes(_LARGEST + 2**20)))
    with pytest.raises(UsageError, match="unpacks to more than"):
        read_archived(trial, folder)
