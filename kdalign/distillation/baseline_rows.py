"""Training-free baseline rows: the majority class of train, and the teacher quantised to int8.

They are computed from what a run's recipe names, scored on its reported split by its metrics, and cached by the
fingerprints of models and data in its record, so that the next table with them is made at once.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.tasks import AnyTask, ClassificationTask, Examples, task_of
from kdalign.environment import cache_folder
from kdalign.errors import NotFinite, UsageError, unknown
from kdalign.files import read_json, write_json
from kdalign.models import checkpoint_files
from kdalign.observer import NullObserver, Observer
from kdalign.recipe import Recipe
from kdalign.runs.discovery import BaselineRow, RunGroup, discover
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import ModelRecord, RunRecord
from kdalign.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kdalign.evaluation.adapters.base import TaskAdapter
    from kdalign.models.checkpoint_files import Checkpoint

KINDS = ("int8", "majority")
KEY_VERSION = 3
"""Counts up when the same runs would have other rows."""


@dataclass(frozen=True)
class BaselineScores:
    """Scores of a baseline row for one run's task.

    Attributes:
        scores: the row's scores, as in a record.
        agreement: agreement with the teacher's saved predictions, as in a record; None without a teacher.
        model: size and latency; None if there is no model.
        beside_ms: latency of the teacher in float32, measured in turns with the model's.
        how: description of how the row was computed, for a footnote.
        reason: why there are no scores; empty if there are.
    """

    scores: list[dict[str, Any]] = field(default_factory=list)
    agreement: dict[str, Any] | None = None
    model: ModelRecord | None = None
    beside_ms: float | None = None
    how: str = ""
    reason: str = ""


def build_baseline_rows(
    paths: Iterable[str | Path], kinds: Sequence[str], watcher: Callable[[], Observer] = NullObserver
) -> list[BaselineRow]:
    """Compute the baseline rows of runs, or read them from the cache.

    Args:
        paths: runs and folders of runs, as in ``compare``.
        kinds: some of ``KINDS``.
        watcher: makes an observer, once something has to be computed.

    Raises:
        UsageError: an unknown kind, no run at a path, or a run that cannot be read.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("baseline row", kind, KINDS)
    entries = discover(paths).entries
    return [_baseline_row(kind, entry, watcher) for kind in dict.fromkeys(kinds) for entry in entries]


def _baseline_row(kind: str, entry: RunGroup, watcher: Callable[[], Observer]) -> BaselineRow:
    """A group of runs with the baseline's numbers in place of their students'."""
    rows = {task: _cached_scores(kind, record, entry.folders[task], watcher) for task, record in entry.records.items()}
    records = {task: _with_scores(record, rows[task]) for task, record in entry.records.items()}
    reasons = {task: row.reason for task, row in rows.items()}
    notes = tuple(row.how for row in rows.values() if row.how)
    return BaselineRow(kind, replace(entry, records=records), reasons, notes)


def _with_scores(record: RunRecord, row: BaselineScores) -> RunRecord:
    """A record whose student is the baseline; one without a model has no size, and no share of a teacher's score."""
    split, scores = next(iter(record.scores.items()))
    undefined = {"value": None, "low": None, "high": None, "reason": row.reason}
    empty = [{**score, **undefined} for score in scores["student"]]
    teacher = record.teacher if row.model is not None else None
    return replace(
        record,
        student=row.model or ModelRecord(record.teacher.source if record.teacher else "", "", 0, 0.0, "none"),
        teacher=None if teacher is None else replace(teacher, latency_ms=row.beside_ms),
        scores={split: {**scores, "student": row.scores or empty, "agreement": row.agreement, "calibration": {}}},
    )


def _cached_scores(kind: str, record: RunRecord, folder: Path, watcher: Callable[[], Observer]) -> BaselineScores:
    """Read a row from the cache, or compute and cache it; a row that fails is tried again the next time."""
    try:
        file = cache_folder() / "beside" / f"{_key(kind, record)}.json"
        cached = _read(file)
        if cached is not None:
            return cached
        row = _int8(record, folder, watcher) if kind == "int8" else _majority(record)
    except UsageError as error:
        return BaselineScores(reason=str(error))
    except NotFinite as error:
        return BaselineScores(reason=f"it gives NaN: {error}")
    write_json(file, asdict(row))
    return row


def _read(file: Path) -> BaselineScores | None:
    """Read a file of the cache; None if it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        tree = read_json(file)
        return BaselineScores(**{**tree, "model": ModelRecord(**tree["model"]) if tree["model"] else None})
    except (UsageError, KeyError, TypeError):
        return None


def _key(kind: str, record: RunRecord) -> str:
    """Hash of all that decides a row: the record's models, data and settings, and the versions that compute it.

    Raises:
        UsageError: the record lacks one of them, or its recipe is of another version.
    """
    split, recipe = next(iter(record.scores)), record.parsed_recipe()
    content: dict[str, Any] = {
        "version": [KEY_VERSION, __version__],
        "kind": kind,
        "task": [record.task, record.metrics],
        "reported": [split, record.data["reported"][split]],
        "train": _train_fingerprint(record),
    }
    if kind == "int8":
        teacher = record.teacher
        content |= {
            "teacher": None if teacher is None else [teacher.revision, teacher.head],
            "finetune": recipe.finetune.model_dump(mode="json"),
            "read": [recipe.data.max_length, recipe.data.order],
            "agreement": record.first_scores.agreement is not None,
            "torch": version("torch"),
            "made": [
                record.environment.get("device"),
                recipe.train.precision,
                record.training.get("ranks"),
            ],
        }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _majority(record: RunRecord) -> BaselineScores:
    """Predict the majority class of train for every example, or the mean of its scores."""
    from kdalign.distillation.splits import training_examples
    from kdalign.evaluation.adapters import adapter_for
    from kdalign.evaluation.predictions import score_all

    recipe = record.parsed_recipe()
    task = _task(recipe)
    if not isinstance(task, ClassificationTask):
        raise UsageError("it needs a task of classes or scores")
    adapter = adapter_for(task, "masked", recipe.data.max_length, "none")
    train, _ = training_examples(adapter, recipe)
    _check_same("train", train, _train_fingerprint(record))
    reported = _load_reported(adapter, record)
    assert train.labels is not None, "training examples were checked"
    assert reported.labels is not None, "a reported split has labels"
    n = len(train)
    if task.regression:
        answers = np.full(len(reported), train.labels.mean())
        logits, text = answers[:, None], f"the mean score of train's {n:,} examples"
    else:
        share = np.bincount(train.labels, minlength=len(task.labels)) / n
        most = int(share.argmax())
        answers = np.full(len(reported), most)
        logits = np.tile(np.log(np.maximum(share, np.finfo(np.float64).tiny)), (len(reported), 1))
        text = f"the majority class of train, {task.labels[most]} ({100 * share[most]:.1f} % of {n:,})"
    scores = score_all(task, answers, reported.labels, task.metrics, logits=logits)
    return BaselineScores(
        [score.to_json() for score in scores], how=f"majority, {task.name}: every example gets {text}"
    )


def _int8(record: RunRecord, folder: Path, watcher: Callable[[], Observer]) -> BaselineScores:
    """Score the run's teacher with its linear layers in int8, once, on the reported split."""
    if record.teacher is None:
        raise UsageError("the run has no teacher")
    from kdalign.evaluation.adapters import adapter_for
    from kdalign.models.architecture import layout_of
    from kdalign.models.media_reader import load_reader
    from kdalign.models.profiling import latencies_ms
    from kdalign.models.quantization import (
        count_quantized_parameters,
        describe_quantization,
        quantize_dynamic,
        quantized_megabytes,
    )

    recipe = record.parsed_recipe()
    if len(recipe.teacher_names) > 1:
        raise UsageError("the run has several teachers, and int8 is of one")
    split = next(iter(record.scores))
    checkpoint = checkpoint_files.find_checkpoint(recipe.teacher_names[0], recipe.revision)
    if checkpoint.hash != record.teacher.revision:
        raise UsageError(f"teacher {checkpoint.name!r} has other weights now than when the run was made")
    family = layout_of(checkpoint.config).family
    adapter = adapter_for(_task(recipe), family, recipe.data.max_length, checkpoint.name, recipe.data.order)
    reported = _load_reported(adapter, record)
    model = _teacher(adapter, checkpoint, record, folder).to("cpu")
    observer = watcher()
    observer.announce(f"scoring {checkpoint.name} in int8 on {record.task}, {split}, cached for the next table")
    small = quantize_dynamic(model)
    encoded = adapter.tokenize(reported, load_reader(checkpoint), scored=True)
    answers = adapter.predict(small, encoded, observer.progress(f"{checkpoint.name} in int8: reading"))
    agreement = None
    if record.first_scores.agreement is not None:
        if not RunFolder(folder).predictions(split).is_file():
            raise UsageError(f"the run's folder {str(folder)!r}, with its teacher's predictions, is gone")
        agreement = adapter.agreement(answers, adapter.read_teacher(RunFolder(folder).predictions(split))).to_json()
    before_ms, after_ms = latencies_ms([model, small], min(128, checkpoint_files.max_positions(model.config)))
    return BaselineScores(
        scores=[score.to_json() for score in adapter.score(answers, encoded)],
        agreement=agreement,
        model=replace(
            record.teacher,
            parameters=count_quantized_parameters(small),
            megabytes=quantized_megabytes(small),
            latency_ms=after_ms,
            flops=None,  # its products are of integers
        ),
        beside_ms=before_ms,
        how=f"int8: the teacher by {describe_quantization()}, rounded by tensor, on the CPU; all else, such as "
        f"embeddings, in fp32; disk: what its state takes; speed-up: over the fp32 teacher, "
        f"in turns with it ({before_ms:.1f} ms)",
    )


def _teacher(adapter: "TaskAdapter", checkpoint: "Checkpoint", record: RunRecord, folder: Path) -> "PreTrainedModel":
    """Load a run's teacher in float32; one that was fine-tuned first is read from the cache."""
    assert record.teacher is not None, "checked: the run has a teacher"
    if record.teacher.head == "its own":
        return adapter.load_model(checkpoint, fresh_head=False, seed=0)
    from kdalign.distillation.splits import training_examples
    from kdalign.models.media_reader import load_reader
    from kdalign.training.finetuning import FinetuneJob

    assert isinstance(adapter.task, ClassificationTask), "only classifiers are fine-tuned first"
    recipe = record.parsed_recipe()
    train, _ = training_examples(adapter, recipe)
    _check_same("train", train, _train_fingerprint(record))
    encoded = adapter.tokenize(train, load_reader(checkpoint), scored=False)
    device = str(record.environment.get("device", "cpu")).partition(":")[0]
    bf16 = recipe.train.precision == "bf16"
    ranks = int(record.training.get("ranks", 1))
    path = FinetuneJob(checkpoint, adapter.task, encoded, recipe.finetune, ranks, device, bf16).path
    if not (path / "config.json").is_file():
        command = f"kdalign distill --recipe {folder / 'recipe.yaml'} --out {folder}-again"
        raise UsageError(
            f"the fine-tuned teacher is no longer in the cache, {path}; this fine-tunes it again: {command}"
        )
    return adapter.load_model(checkpoint_files.find_checkpoint(str(path)), fresh_head=False, seed=0)


def _task(recipe: Recipe) -> AnyTask:
    return task_of(recipe.data)


def _load_reported(adapter: "TaskAdapter", record: RunRecord) -> Examples:
    """Load the split that the run reports first, and check that it is the same as then."""
    from kdalign.distillation.splits import examples_to_report

    split = next(iter(record.scores))
    examples = examples_to_report(adapter, record.parsed_recipe().data, split)
    _check_same(split, examples, record.data["reported"][split]["fingerprint"])
    return examples


def _train_fingerprint(record: RunRecord) -> str:
    """The fingerprint of a run's training texts."""
    train = record.data.get("train")
    if train is None:
        raise UsageError("the run's record lacks the fingerprint of its training texts")
    return str(train["fingerprint"])


def _check_same(split: str, examples: Examples, fingerprint: str) -> None:
    if examples.fingerprint() != fingerprint:
        raise UsageError(f"split {split!r} holds other examples now than when the run was made")
