"""Archive of an ablation's finished runs: what tables and tests need, small enough to commit.

::

    OUT/kept/  ARM-TASK-seedN.json.z  a run's record and predictions, compressed against the first archived run
               common.json.gz         the first archived run; without it, no other can be read
               HASH.gz                labels, or a teacher's predictions, which many runs share
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
from kdalign.recipe.task_defaults import DEFAULTED, is_missing
from kdalign.runs.ablation_spec import KEPT, Trial, read_ablation
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import AGREED, ARCHIVED, PREDICTION, SHARED, check_predictions, read_predictions
from kdalign.runs.record import RunRecord, read_record
from kdalign.runs.seal import seal_of

_COMMON = "common.json.gz"
_HEX = 16
"""Digits of the SHA-256 that seals an archived run or names a shared column."""
_UNKEPT = ("samples", "files", "seal")
_ELSEWHERE = ("out", "allow", "train.device", "train.precision", "train.profile", "train.keep", "cache.keep")
"""Keys that may differ between an archived run and its trial: where, not what, was trained, what checks may find,
what is measured beside, checkpoints, and outputs for others."""
_LARGEST = 32 * 2**20
"""Limit of unpacked bytes of an archived run or shared column: some millions of predictions."""
ROUNDING = 1e-4
"""Largest relative change of a score or likelihood by being kept: four digits stay."""
_KINDS = ("<i4", "<f4", "<f8")
_WHOLE = 2**14
"""Largest whole number that rounding leaves as it is."""
_TEXT_KIND = "texts"
"""Kind of a column of texts, or of lists of texts, which is kept as JSON."""
_SHARED_FILE = re.compile(rf"[0-9a-f]{{{_HEX}}}\.gz")


@dataclass(frozen=True)
class ArchivedRun:
    """An archived run.

    Attributes:
        record: the run's record, without samples.
        inputs: fingerprints of the models and splits that the run read.
        answers: predictions by split and column (``prediction_table.ARCHIVED``).
        watched: evaluations during training, each a step and scores by metric.
    """

    trial: Trial
    record: RunRecord
    inputs: Mapping[str, str]
    answers: Mapping[str, Mapping[str, Array]]
    watched: Sequence[Mapping[str, Any]]


def archive_run(trial: Trial, folder: Path) -> ArchivedRun:
    """Archive a finished run; predicted scores are rounded to four digits, unless they are whole."""
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
    """Read an archived run.

    Raises:
        UsageError: the file is something else, was changed, or belongs to another recipe.
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
    unknown = DEFAULTED if is_missing(trial.task) else ()
    changed = [key for key in asked if key not in (*_ELSEWHERE, *unknown) and asked[key] != made[key]]
    if changed:
        raise UsageError(f"{str(file)!r} is of another recipe, {', '.join(changed)} differ: --overwrite makes it again")
    return ArchivedRun(trial, record, inputs, answers, watched)


def _inputs(tree: object) -> dict[str, str]:
    if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
        raise ValueError("its inputs are not fingerprints by name")
    return tree


def _watched(tree: object) -> list[dict[str, Any]]:
    if not isinstance(tree, list) or not all(
        isinstance(event, dict) and isinstance(event.get("step"), int) for event in tree
    ):
        raise ValueError("its evaluations while training are not each a step and scores")
    return tree


def _check_lengths(answers: Mapping[str, Mapping[str, Array]], record: RunRecord, where: str) -> None:
    """Refuse columns whose lengths differ, or differ from the record's number of examples."""
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
    """Read all archived runs of an ablation."""
    folder = out / KEPT
    return [read_archived(trial, folder) for trial in read_ablation(out).trials(out) if (folder / trial.file).is_file()]


def _seal_of(content: Mapping[str, Any]) -> str:
    return seal_of(content)[:_HEX]


def _compressed(content: bytes, folder: Path) -> bytes:
    """Compress against the first archived run: records of an ablation differ little, which saves two thirds."""
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
    """Unpack a stream up to a limit: a few bytes can stand for gigabytes.

    Raises:
        ValueError: more than ``_LARGEST`` bytes, a stream that is cut off, or bytes after its end.
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
    table = read_predictions(file)
    frame = table.frame if table.agreed is None else table.frame.assign(**{AGREED: table.agreed})
    return {name: frame[name].to_numpy() for name in ARCHIVED if name in frame.columns}


def _packed(name: str, values: Array, folder: Path) -> dict[str, str]:
    """Pack a column as text, or as the name of a file that many runs share.

    Bytes are grouped by their place in the numbers, which compresses better.
    """
    if values.dtype.kind == "O":
        texts = [each if isinstance(each, str) else list(each) for each in values]
        raw, kind = json.dumps(texts, separators=(",", ":")).encode(), _TEXT_KIND
    else:
        column = values.astype("<i4") if values.dtype.kind != "f" else _shortened(values)
        raw, kind = column.view(np.uint8).reshape(-1, column.dtype.itemsize).T.tobytes(), column.dtype.str
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
    """Round scores to 32 bits whose last ten are 0: four digits. Large whole numbers, such as packed ranks, stay."""
    if np.abs(values).max(initial=0) > _WHOLE and (np.rint(values) == values).all():
        return values.astype("<f8")
    bits = values.astype("<f4").view("<u4")
    kept: Array = np.where(np.isfinite(values), (bits + 0x200) & ~np.uint32(0x3FF), bits).astype("<u4").view("<f4")
    return kept


def _unpacked(packed: Mapping[str, str], folder: Path) -> Array:
    if packed["dtype"] not in (*_KINDS, _TEXT_KIND):
        raise ValueError(f"a column of {packed['dtype']!r} (accepted: {', '.join((*_KINDS, _TEXT_KIND))})")
    if "file" in packed:
        if not _SHARED_FILE.fullmatch(packed["file"]):
            raise ValueError(f"{packed['file']!r} is not the name of a shared column")
        raw = _gunzipped(folder / packed["file"])
        if packed["file"] != f"{_name_of(raw)}.gz":
            raise ValueError(f"{packed['file']} was changed")
    else:
        raw = base64.b64decode(packed["values"], validate=True)
    if packed["dtype"] == _TEXT_KIND:
        return _as_objects(parse_json(raw.decode(), "a column of texts"))
    planes = np.frombuffer(raw, dtype=np.uint8).reshape(np.dtype(packed["dtype"]).itemsize, -1)
    values: Array = np.ascontiguousarray(planes.T).view(packed["dtype"]).reshape(-1)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _as_objects(texts: object) -> Array:
    """Return a column of texts, or of lists of them, as an array of objects."""
    if not isinstance(texts, list):
        raise ValueError("a column of texts is no list")
    column: Array = np.empty(len(texts), dtype=object)
    for row, each in enumerate(texts):
        column[row] = each
    return column
