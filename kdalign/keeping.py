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
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.ablation import KEPT, Trial, read_ablation
from kdalign.errors import Changed, UsageError
from kdalign.files import whole_file
from kdalign.runs import RunFolder, RunRecord, read_record, seal_of

Array = np.ndarray[Any, Any]

_COMMON = "common.json.gz"
_HEX = 16
"""Digits of a SHA-256 that seal what is kept and name what is shared."""
_UNKEPT = ("samples", "files", "seal")
_ELSEWHERE = ("out", "train.device", "train.precision")
"""Keys that may differ between a result that is kept and the trial that it is of: where, not what, was trained."""
_ANSWERS = ("prediction", "label", "teacher", "nll", "tokens")
_SHARED = ("label", "teacher", "tokens")


@dataclass(frozen=True)
class Kept:
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


def keep(trial: Trial, folder: Path) -> Kept:
    """Keep what tables and tests need of a finished run; scores that are no classes are rounded to four digits."""
    run = RunFolder(Path(str(trial.recipe.out)))
    tree = read_record(run.path).to_json()
    answers = {split: _read_answers(run.predictions(split)) for split in tree["scores"]}
    packed = {
        split: {name: _packed(name, values, folder) for name, values in columns.items()}
        for split, columns in answers.items()
    }
    content = {name: value for name, value in tree.items() if name not in _UNKEPT}
    inputs = json.loads(run.inputs.read_text(encoding="utf-8"))
    watched = [{name: _rounded(value) for name, value in event.items()} for event in run.watched]
    content |= {"answers": packed, "inputs": inputs, "watched": watched}
    content["seal"] = _seal_of(content)
    with whole_file(folder / trial.file) as temporary:
        temporary.write_bytes(_compressed(json.dumps(content, separators=(",", ":")).encode(), folder))
    return read_kept(trial, folder)


def read_kept(trial: Trial, folder: Path) -> Kept:
    """What ``keep`` wrote.

    Raises:
        UsageError: the file is something else, was changed since, or is of a run by another recipe.
    """
    file = folder / trial.file
    try:
        tree = json.loads(_restored(file.read_bytes(), folder))
        if tree.pop("seal") != _seal_of(tree):
            raise Changed(f"{str(file)!r} was changed after it was kept: its seal does not fit it")
        answers = {
            split: {name: _unpacked(values, folder) for name, values in columns.items()}
            for split, columns in tree.pop("answers").items()
        }
        inputs, watched = dict(tree.pop("inputs")), list(tree.pop("watched"))
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, zlib.error) as error:
        raise UsageError(f"{str(file)!r} is not what an ablation kept: {' '.join(str(error).split())}") from None
    record = RunRecord.from_json({**tree, "samples": [], "files": {}}, repr(str(file)))
    asked, made = trial.recipe.flat(), record.parsed_recipe().flat()
    changed = [key for key in asked if key not in _ELSEWHERE and asked[key] != made[key]]
    if changed:
        raise UsageError(f"{str(file)!r} is of another recipe, {', '.join(changed)} differ: --overwrite makes it anew")
    return Kept(trial, record, inputs, answers, watched)


def read_all_kept(out: Path) -> list[Kept]:
    """All that is kept of an ablation so far."""
    folder = out / KEPT
    return [read_kept(trial, folder) for trial in read_ablation(out).trials(out) if (folder / trial.file).is_file()]


def _seal_of(content: Mapping[str, Any]) -> str:
    return seal_of(content)[:_HEX]


def _compressed(content: bytes, folder: Path) -> bytes:
    """A third of what it would be alone: an ablation's records differ by little."""
    common = folder / _COMMON
    if not common.is_file():
        with whole_file(common) as temporary:
            temporary.write_bytes(gzip.compress(content, mtime=0))
    packer = zlib.compressobj(9, zdict=gzip.decompress(common.read_bytes()))
    return packer.compress(content) + packer.flush()


def _restored(compressed: bytes, folder: Path) -> bytes:
    unpacker = zlib.decompressobj(zdict=gzip.decompress((folder / _COMMON).read_bytes()))
    return unpacker.decompress(compressed) + unpacker.flush()


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _read_answers(file: Path) -> dict[str, Array]:
    import pandas as pd

    table = pd.read_parquet(file)
    return {name: table[name].to_numpy() for name in _ANSWERS if name in table.columns}


def _packed(name: str, values: Array, folder: Path) -> dict[str, str]:
    """A column as text, or the name of a file in the folder where many runs share it.

    Bytes of the same place in their numbers stand together, which compresses better.
    """
    whole = values.dtype.kind != "f"
    column = values.astype("<i4") if whole else _shortened(values)
    raw = column.view(np.uint8).reshape(-1, 4).T.tobytes()
    kind = column.dtype.str
    if name not in _SHARED:
        return {"dtype": kind, "values": base64.b64encode(raw).decode()}
    file = folder / f"{_name_of(raw)}.gz"
    if not file.is_file():
        with whole_file(file) as temporary:
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
    if "file" in packed:
        raw = gzip.decompress((folder / packed["file"]).read_bytes())
        if packed["file"] != f"{_name_of(raw)}.gz":
            raise ValueError(f"{packed['file']} was changed")
    else:
        raw = base64.b64decode(packed["values"])
    planes = np.frombuffer(raw, dtype=np.uint8).reshape(4, -1)
    values: Array = np.ascontiguousarray(planes.T).view(packed["dtype"]).reshape(-1)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
