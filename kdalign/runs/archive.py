"""The little that is kept of an ablation's finished runs: what tables and tests need, small enough to commit.

::

    OUT/kept/  ARM-TASK-seedN.json.z  a run's record and answers, compressed with what it has in common with the first
               common.json.gz         the first that was kept; without it, no other can be read
               HASH.gz                labels, or a teacher's answers, which many runs share
"""

import base64
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.errors import TamperedRun, UsageError, cause_of
from kdalign.files import atomic_file, parse_json, read_bytes
from kdalign.metrics.arrays import Array
from kdalign.runs.ablation_spec import KEPT, Trial, read_ablation
from kdalign.runs.folder import RunFolder, seal_of
from kdalign.runs.prediction_table import ARCHIVED, PREDICTION, SHARED, check_predictions, read_predictions
from kdalign.runs.record import RunRecord, read_record

_COMMON = "common.json.gz"
_HEX = 16
"""Digits of a SHA-256 that seal what is kept and name what is shared."""
_UNKEPT = ("samples", "files", "seal")
_ELSEWHERE = ("out", "train.device", "train.precision")
"""Keys that may differ between a result that is kept and the trial that it is of: where, not what, was trained."""
_LARGEST = 32 * 2**20
"""Bytes to which a kept result, and a column that runs share, may unpack: some millions of answers."""
_KINDS = ("<i4", "<f4")
_SHARED_FILE = re.compile(rf"[0-9a-f]{{{_HEX}}}\.gz")


@dataclass(frozen=True)
class ArchivedRun:
    """What is kept of a finished run.

    Attributes:
        record: the run's, without samples.
        inputs: fingerprints of the models and splits that the run read.
        answers: by split and column, as in the run's predictions: ``prediction``, ``label``, ``teacher``; a language
            model's ``nll`` and ``tokens``.
        watched: the evaluations while it was trained, each a step and scores by metric.
    """

    trial: Trial
    record: RunRecord
    inputs: Mapping[str, str]
    answers: Mapping[str, Mapping[str, Array]]
    watched: Sequence[Mapping[str, Any]]


def archive_run(trial: Trial, folder: Path) -> ArchivedRun:
    """Keep what tables and tests need of a finished run; scores that are no classes are rounded to four digits."""
    run = RunFolder(Path(str(trial.recipe.out)))
    tree = read_record(run.path).to_json()
    answers = {split: _read_answers(run.predictions(split)) for split in tree["scores"]}
    packed = {
        split: {name: _packed(name, values, folder) for name, values in columns.items()}
        for split, columns in answers.items()
    }
    content = {name: value for name, value in tree.items() if name not in _UNKEPT}
    inputs = run.read_inputs()
    watched = [{name: _rounded(value) for name, value in event.items()} for event in run.watched]
    content |= {"answers": packed, "inputs": inputs, "watched": watched}
    content["seal"] = _seal_of(content)
    with atomic_file(folder / trial.file) as temporary:
        temporary.write_bytes(_compressed(json.dumps(content, separators=(",", ":"), allow_nan=False).encode(), folder))
    return read_archived(trial, folder)


def read_archived(trial: Trial, folder: Path) -> ArchivedRun:
    """What ``keep`` wrote.

    Raises:
        UsageError: the file is something else, was changed since, or is of a run by another recipe.
    """
    file = folder / trial.file
    try:
        content = _restored(read_bytes(file, _LARGEST), folder)
        tree = parse_json(content.decode(), "what it unpacks to")
        if tree.pop("seal") != _seal_of(tree):
            raise TamperedRun(f"{str(file)!r} was changed after it was kept: its seal does not fit it")
        answers = {
            split: {name: _unpacked(values, folder) for name, values in columns.items()}
            for split, columns in tree.pop("answers").items()
        }
        inputs, watched = _inputs(tree.pop("inputs")), _watched(tree.pop("watched"))
    except TamperedRun:
        raise
    except (UsageError, ValueError, KeyError, AttributeError, TypeError, zlib.error) as error:
        raise UsageError(f"{str(file)!r} is not what an ablation kept: {cause_of(error)}") from None
    record = RunRecord.from_json({**tree, "samples": [], "files": {}}, repr(str(file)))
    _check_lengths(answers, record, repr(str(file)))
    asked, made = trial.recipe.flat(), record.parsed_recipe().flat()
    changed = [key for key in asked if key not in _ELSEWHERE and asked[key] != made[key]]
    if changed:
        raise UsageError(f"{str(file)!r} is of another recipe, {', '.join(changed)} differ: --overwrite makes it anew")
    return ArchivedRun(trial, record, inputs, answers, watched)


def _inputs(tree: object) -> dict[str, str]:
    if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
        raise ValueError("its inputs are no fingerprints by name")
    return tree


def _watched(tree: object) -> list[dict[str, Any]]:
    if not isinstance(tree, list) or not all(
        isinstance(event, dict) and isinstance(event.get("step"), int) for event in tree
    ):
        raise ValueError("its evaluations while training are not each a step and scores")
    return tree


def _check_lengths(answers: Mapping[str, Mapping[str, Array]], record: RunRecord, where: str) -> None:
    """Refuse columns of another length than one another, or than the examples that the record counts."""
    import pandas as pd

    if set(answers) != set(record.scores):
        raise UsageError(f"{where} keeps answers to {', '.join(answers)}, and scores of {', '.join(record.scores)}")
    for split, columns in answers.items():
        lengths = {name: len(values) for name, values in columns.items()}
        n = record.reported[split].n
        whole = {n} if PREDICTION in lengths else set(lengths.values())  # a long text has several rows of likelihoods
        if not set(lengths.values()) <= whole or len(whole) > 1:
            shown = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
            raise UsageError(f"{where}: the answers to the {n:,} examples of {split} are of other lengths: {shown}")
        check_predictions(pd.DataFrame(columns), f"{where}, {split}", n)


def read_all_archived(out: Path) -> list[ArchivedRun]:
    """All that is kept of an ablation so far."""
    folder = out / KEPT
    return [read_archived(trial, folder) for trial in read_ablation(out).trials(out) if (folder / trial.file).is_file()]


def _seal_of(content: Mapping[str, Any]) -> str:
    return seal_of(content)[:_HEX]


def _compressed(content: bytes, folder: Path) -> bytes:
    """A third of what it would be alone: an ablation's records differ by little."""
    common = folder / _COMMON
    if not common.is_file():
        with atomic_file(common) as temporary:
            temporary.write_bytes(gzip.compress(content, mtime=0))
    packer = zlib.compressobj(9, zdict=_gunzipped(common))
    return packer.compress(content) + packer.flush()


def _restored(compressed: bytes, folder: Path) -> bytes:
    return _unzipped(zlib.decompressobj(zdict=_gunzipped(folder / _COMMON)), compressed)


def _gunzipped(file: Path) -> bytes:
    return _unzipped(zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), read_bytes(file, _LARGEST))


def _unzipped(unpacker: Any, data: bytes) -> bytes:
    """What a stream unpacks to, as far as it may: some bytes can stand for gigabytes.

    Raises:
        ValueError: it is more than ``_LARGEST``, or cut off, or something follows.
    """
    found: bytes = unpacker.decompress(data, _LARGEST + 1)
    if len(found) > _LARGEST:
        raise ValueError(f"it unpacks to more than {_LARGEST:,} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is cut off" if not unpacker.eof else "something follows its end")
    return found


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _read_answers(file: Path) -> dict[str, Array]:
    frame = read_predictions(file).frame
    return {name: frame[name].to_numpy() for name in ARCHIVED if name in frame.columns}


def _packed(name: str, values: Array, folder: Path) -> dict[str, str]:
    """A column as text, or the name of a file in the folder where many runs share it.

    Bytes of the same place in their numbers stand together, which compresses better.
    """
    whole = values.dtype.kind != "f"
    column = values.astype("<i4") if whole else _shortened(values)
    raw = column.view(np.uint8).reshape(-1, 4).T.tobytes()
    kind = column.dtype.str
    if name not in SHARED:
        return {"dtype": kind, "values": base64.b64encode(raw).decode()}
    file = folder / f"{_name_of(raw)}.gz"
    if not file.is_file():
        with atomic_file(file) as temporary:
            temporary.write_bytes(gzip.compress(raw, mtime=0))
    return {"dtype": kind, "file": file.name}


def _name_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:_HEX]


def _shortened(values: Array) -> Array:
    """Scores in 32 bits, of which the last ten are 0: four digits."""
    bits = values.astype("<f4").view("<u4")
    kept: Array = np.where(np.isfinite(values), (bits + 0x200) & ~np.uint32(0x3FF), bits).astype("<u4").view("<f4")
    return kept


def _unpacked(packed: Mapping[str, str], folder: Path) -> Array:
    if packed["dtype"] not in _KINDS:
        raise ValueError(f"a column of {packed['dtype']!r} (accepted: {', '.join(_KINDS)})")
    if "file" in packed:
        if not _SHARED_FILE.fullmatch(packed["file"]):
            raise ValueError(f"{packed['file']!r} is no name of a column that is shared")
        raw = _gunzipped(folder / packed["file"])
        if packed["file"] != f"{_name_of(raw)}.gz":
            raise ValueError(f"{packed['file']} was changed")
    else:
        raw = base64.b64decode(packed["values"], validate=True)
    planes = np.frombuffer(raw, dtype=np.uint8).reshape(4, -1)
    values: Array = np.ascontiguousarray(planes.T).view(packed["dtype"]).reshape(-1)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
