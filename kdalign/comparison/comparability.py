"""Comparability of a table's rows: data, metric versions, teachers and tokenizers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdalign.comparison.table import ScoredSplit, metric_key
from kdalign.metrics.classification import Score
from kdalign.runs.discovery import RunGroup, records_of
from kdalign.runs.record import RunRecord


def evaluation_name(result: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> str:
    """Name an evaluation's row by its model and split, and by its data if other rows share both."""
    name, data = Path(result["model"]).name, f"{result['n']:,} of {Path(result['source']).name}"
    if any(Path(other["model"]).name == name and other["model"] != result["model"] for other in others):
        name = result["model"]
    same_split = [other for other in others if all(other[key] == result[key] for key in ("model", "split", "task"))]
    if any((other["n"], other["source"]) != (result["n"], result["source"]) for other in same_split):
        return f"{name} ({result['split']}, {data})"
    return f"{name} ({result['split']})"


def scored_split(record: RunRecord) -> ScoredSplit:
    """The data that stands for a run's task: its first reported split."""
    data = record.reported[record.split]
    return ScoredSplit(record.task, record.split, data.n, data.fingerprint)


def scored_splits(entries: Sequence[RunGroup], evaluations: Sequence[dict[str, Any]]) -> tuple[ScoredSplit, ...]:
    """The data that scores of runs and evaluations are computed on, each once."""
    splits = [scored_split(record) for record in records_of(entries)]
    splits += [ScoredSplit(result["task"], result["split"], result["n"]) for result in evaluations if result["scores"]]
    return tuple(dict.fromkeys(splits))


def evaluation_scores(result: dict[str, Any]) -> list[Score]:
    """Read the scores of an evaluation."""
    return [Score.from_json(score) for score in result["scores"]]


def describe_signatures(signatures: Mapping[str, str]) -> str:
    """Describe how metrics were computed, from their signatures; metrics that share one are in one clause."""
    metrics: dict[str, list[str]] = {}
    for metric, signature in signatures.items():
        metrics.setdefault(signature, []).append(metric)
    return "; ".join(f"{', '.join(names)} by {signature}" for signature, names in metrics.items())


def find_protocols(entries: Sequence[RunGroup]) -> dict[str, set[str]]:
    """Data and metric versions that the runs of each task were scored with; rows with several do not rank."""
    protocols: dict[str, set[str]] = {}
    for record in records_of(entries):
        signatures = describe_signatures({score.metric: score.signature for score in record.first_scores.student})
        protocols.setdefault(record.task, set()).add(f"{scored_split(record).data}; {signatures}")
    return protocols


def have_different_tasks(entries: Sequence[RunGroup]) -> bool:
    """True if not all rows have the same tasks."""
    return len({tuple(sorted(entry.records)) for entry in entries}) > 1


def have_different_teachers(entries: Sequence[RunGroup]) -> bool:
    """True if a task has several teachers, told apart by weights, fine-tuned head or scores."""
    taught = [record for record in records_of(entries) if record.teacher is not None or record.first_scores.teacher]
    teachers = {(record.task, *_teacher_key(record)) for record in taught}
    return len(teachers) > len({task for task, *_ in teachers})


def _teacher_key(record: RunRecord) -> tuple[str, str, str]:
    scores = [None if score.value is None else round(score.value, 3) for score in record.first_scores.teacher]
    if record.teacher is None:
        return record.served_teacher, "", json.dumps(scores)
    return record.teacher.revision, record.teacher.head, json.dumps(scores)


_PER_TOKEN = ("ppl", "masked_ppl")
_PER_TEXT_UNIT = ("word_ppl", "byte_ppl", "bits_per_byte")


def find_incomparable(entries: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Columns of per-token likelihoods that do not compare because the runs' tokenizers differ.

    Returns:
        For each column, the runs' metrics over words or bytes of the text, which do compare.
    """
    incomparable: dict[str, list[str]] = {}
    for task in dict.fromkeys(record.task for record in records_of(entries)):
        records = [record for record in records_of(entries) if record.task == task]
        metrics = dict.fromkeys(score.metric for record in records for score in record.first_scores.student)
        if len(_tokenizers(records)) > 1:
            instead = [name for name in metrics if name in _PER_TEXT_UNIT]
            incomparable |= {metric_key(task, name): instead for name in metrics if name in _PER_TOKEN}
    return incomparable


def _tokenizers(records: Sequence[RunRecord]) -> set[str]:
    """Fingerprints of the students' tokenizers.

    If a record has none, hashes of the tokenizers' files, in which libraries also keep the maximum length.
    """
    fingerprints = [record.data.get("tokenizer", "") for record in records]
    if all(fingerprints):
        return set(fingerprints)
    return {record.files.get("student/tokenizer.json", "") for record in records}
