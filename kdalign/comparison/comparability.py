"""Whether rows of a table can be compared: data, protocol, teacher and tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdalign.comparison.table import ScoredSplit, metric_key
from kdalign.runs.discovery import RunGroup, records_of
from kdalign.runs.record import RunRecord, first_split


def evaluation_name(result: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> str:
    """What a row calls an evaluation: its model and split; how many of which data, where others share both."""
    name, data = Path(result["model"]).name, f"{result['n']:,} of {Path(result['source']).name}"
    if any(Path(one["model"]).name == name and one["model"] != result["model"] for one in others):
        name = result["model"]
    alike = [one for one in others if (one["model"], one["split"]) == (result["model"], result["split"])]
    if any(
        (one["task"], one["n"], one["source"]) != (result["task"], result["n"], result["source"])
        and one["task"] == result["task"]
        for one in alike
    ):
        return f"{name} ({result['split']}, {data})"
    return f"{name} ({result['split']})"


def scored_split(record: RunRecord) -> ScoredSplit:
    """The data that stands for a run's task: its first reported split."""
    split = next(iter(record.scores))
    facts = record.data["reported"][split]
    return ScoredSplit(record.task, split, facts["n"], facts["fingerprint"])


def scored_splits(entries: Sequence[RunGroup], evaluations: Sequence[dict[str, Any]]) -> tuple[ScoredSplit, ...]:
    """The data that scores of runs and evaluations are computed on, each once."""
    splits = [scored_split(record) for record in records_of(entries)]
    splits += [ScoredSplit(result["task"], result["split"], result["n"]) for result in evaluations if result["scores"]]
    return tuple(dict.fromkeys(splits))


def describe_signatures(scores: Sequence[dict[str, Any]]) -> str:
    """How scores were taken: the metrics that share a signature together."""
    metrics: dict[str, list[str]] = {}
    for score in scores:
        metrics.setdefault(score["signature"], []).append(score["metric"])
    return "; ".join(f"{', '.join(names)} by {signature}" for signature, names in metrics.items())


def find_protocols(entries: Sequence[RunGroup]) -> dict[str, set[str]]:
    """Data and metric versions that the runs of each task were scored with; rows with several do not rank."""
    protocols: dict[str, set[str]] = {}
    for record in records_of(entries):
        signatures = describe_signatures(first_split(record)["student"])
        protocols.setdefault(record.task, set()).add(f"{scored_split(record).data}; {signatures}")
    return protocols


def have_different_tasks(entries: Sequence[RunGroup]) -> bool:
    """Whether entries are of other tasks than one another."""
    return len({tuple(sorted(entry.records)) for entry in entries}) > 1


def have_different_teachers(entries: Sequence[RunGroup]) -> bool:
    """Whether a task has several teachers: other weights to begin with, fine-tuned otherwise, or of other scores."""
    teachers = {(record.task, *_of_teacher(record)) for record in records_of(entries) if record.teacher is not None}
    return len(teachers) > len({task for task, *_ in teachers})


def _of_teacher(record: RunRecord) -> tuple[str, str, str]:
    assert record.teacher is not None, "asked for a run that has one"
    scores = [None if score["value"] is None else round(score["value"], 3) for score in first_split(record)["teacher"]]
    return record.teacher.revision, record.teacher.head, json.dumps(scores)


_OF_TOKENS = ("ppl", "masked_ppl")


_OF_TEXT = ("word_ppl", "byte_ppl", "bits_per_byte")


def find_incomparable(entries: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Likelihoods a token, by their columns, where runs have other tokenizers than one another.

    With each, what compares instead because it is over the words or bytes of the text, as far as the runs have it.
    """
    found: dict[str, list[str]] = {}
    for task in dict.fromkeys(record.task for record in records_of(entries)):
        records = [record for record in records_of(entries) if record.task == task]
        metrics = dict.fromkeys(score["metric"] for record in records for score in first_split(record)["student"])
        if len(_tokenizers(records)) > 1:
            instead = [name for name in metrics if name in _OF_TEXT]
            found |= {metric_key(task, name): instead for name in metrics if name in _OF_TOKENS}
    return found


def _tokenizers(records: Sequence[RunRecord]) -> set[str]:
    """What tells the students' tokenizers apart.

    Where a record does not say, the hashes of their files, in which libraries also keep how far texts are cut.
    """
    said = [record.data.get("tokenizer", "") for record in records]
    return set(said if all(said) else [record.files.get("student/tokenizer.json", "") for record in records])
