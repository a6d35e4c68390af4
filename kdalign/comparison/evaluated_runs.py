"""Evaluations of runs: scores that ``kdalign eval`` adds to the rows of the runs whose students it scored."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdalign.comparison.comparability import evaluation_scores
from kdalign.comparison.table import Cell, metric_key
from kdalign.metrics.classification import Score
from kdalign.runs.discovery import RunGroup


def join_evaluations(
    entries: Sequence[RunGroup], evaluations: Sequence[dict[str, Any]]
) -> tuple[tuple[RunGroup, ...], tuple[dict[str, Any], ...]]:
    """Give runs the evaluations that scored their students on the examples that they report themselves.

    Returns:
        The runs, and the other evaluations, which are rows of their own: of models that are no run here, of other
        examples, or with another value of a score that a run was already given.
    """
    joined: list[dict[str, tuple[dict[str, Any], ...]]] = [{} for _ in entries]
    places = {
        (record.identity, task, record.split, record.reported[record.split].fingerprint): (number, task)
        for number, entry in enumerate(entries)
        for task, record in entry.records.items()
    }
    others = []
    for result in evaluations:
        place = places.get((result.get("run", ""), result["task"], result["split"], result.get("examples", "")))
        known = joined[place[0]].get(place[1], ()) if place is not None else ()
        if place is None or _contradicts(result, known):
            others.append(result)
        else:
            joined[place[0]][place[1]] = (*known, result)
    return tuple(replace(entry, evaluated=own) for entry, own in zip(entries, joined, strict=True)), tuple(others)


def _contradicts(result: dict[str, Any], known: Sequence[dict[str, Any]]) -> bool:
    before = {score.metric: score.value for other in known for score in evaluation_scores(other)}
    return any(before.get(score.metric, score.value) != score.value for score in evaluation_scores(result))


def added_scores(entry: RunGroup, task: str) -> dict[str, tuple[Score, dict[str, Any]]]:
    """Scores of a run's evaluations that the run itself lacks, by metric, each with its evaluation."""
    own = {"agreement", *(score.metric for score in entry.records[task].first_scores.student)}
    found: dict[str, tuple[Score, dict[str, Any]]] = {}
    for result in entry.evaluated.get(task, ()):
        for score in evaluation_scores(result):
            if score.metric not in own:
                found.setdefault(score.metric, (score, result))
    return found


def added_cells(entry: RunGroup, task: str) -> dict[str, Cell]:
    """Cells of a run's evaluations by column, also of metrics that could not be computed."""
    scores = {score.metric: score for score, _ in added_scores(entry, task).values()}
    cells = {
        metric_key(task, metric): Cell(score.value, score.low, score.high, reason=score.reason, mark=score.mark)
        for metric, score in scores.items()
    }
    for result in entry.evaluated.get(task, ()):
        for absent in result["absent"]:
            cells.setdefault(metric_key(task, absent["metric"]), Cell(None, reason=absent["reason"]))
    return cells


def differently_scored(entries: Sequence[RunGroup]) -> set[str]:
    """Columns of evaluations whose scores were computed in several ways, so that they do not rank."""
    ways: dict[str, set[str]] = {}
    for entry in entries:
        for task in entry.records:
            for metric, (score, result) in added_scores(entry, task).items():
                how = "; ".join([score.signature, *_ways_of_writing(result)])
                ways.setdefault(metric_key(task, metric), set()).add(how)
    return {key for key, found in ways.items() if len(found) > 1}


def _ways_of_writing(result: dict[str, Any]) -> list[str]:
    """An evaluation's notes without the name of its model: how texts were generated."""
    return [note.removeprefix(result["model"]) for note in result.get("notes", ()) if " writes: " in note]
