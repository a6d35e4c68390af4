"""Evaluations of runs: scores of texts that ``kdalign eval`` adds to the rows of the runs whose students wrote them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdalign.comparison.columns import cell_of
from kdalign.comparison.comparability import evaluation_scores
from kdalign.comparison.table import Cell, metric_key
from kdalign.metrics.classification import Score
from kdalign.metrics.text import TEXT_METRICS, without_nfc
from kdalign.runs.discovery import RunGroup

Result = dict[str, Any]
"""A model's scores on a split, as ``kdalign eval`` writes them."""
_Place = tuple[int, str]
"""Number of a run, and its task."""


def join_evaluations(
    entries: Sequence[RunGroup], evaluations: Sequence[Result]
) -> tuple[tuple[RunGroup, ...], tuple[Result, ...]]:
    """Give runs the scores of the texts that their students wrote for the examples that the runs report.

    A column of runs has texts that were written in one way and scored in one way, those of the first evaluation.

    Returns:
        The runs, and the evaluations with the scores that are left, which are rows of their own: of models that are no
        run here, of other examples, of likelihoods and classes, which runs have themselves, of texts that were written
        or scored in another way, and second scores with another value.
    """
    joined: list[dict[str, tuple[Result, ...]]] = [{} for _ in entries]
    places = _places(entries)
    ways: dict[str, str] = {}
    others = []
    for result in evaluations:
        found = places.get((result.get("run", ""), result["task"], result["split"], result.get("examples", "")), [])
        scores = [score for score in result["scores"] if found and _joins(score, result, joined, found, ways)]
        if not scores:
            others.append(result)
            continue
        absent = [one for one in result["absent"] if one["metric"] in TEXT_METRICS]
        for number, task in found:
            own = {**result, "scores": scores, "absent": absent}
            joined[number][task] = (*joined[number].get(task, ()), own)
        left = [score for score in result["scores"] if score not in scores]
        if left:
            result = {**result, "real_time_factor": None}  # the run has it
            others.append({**result, "scores": left, "absent": [one for one in result["absent"] if one not in absent]})
    return tuple(replace(entry, evaluated=own) for entry, own in zip(entries, joined, strict=True)), tuple(others)


def _places(entries: Sequence[RunGroup]) -> dict[tuple[str, str, str, str], list[_Place]]:
    """Places of runs by their identity, task, split and examples; copies of a run share theirs."""
    places: dict[tuple[str, str, str, str], list[_Place]] = {}
    for number, entry in enumerate(entries):
        for task, record in entry.records.items():
            key = (record.identity, task, record.split, record.reported[record.split].fingerprint)
            places.setdefault(key, []).append((number, task))
    return places


def _joins(
    tree: Mapping[str, Any],
    result: Result,
    joined: Sequence[Mapping[str, Sequence[Result]]],
    places: Sequence[_Place],
    ways: dict[str, str],
) -> bool:
    """Return whether a score is of texts and agrees with what its runs have; note the way in which it was computed."""
    score = Score.from_json(tree)
    if score.metric not in TEXT_METRICS or not result.get("writing"):
        return False
    number, task = places[0]
    known = _scores(joined[number].get(task, ())).get(score.metric)
    if known is not None and not _equal(known[0].value, score.value):
        return False
    way = "\0".join([without_nfc(score.signature), result.get("writing", ""), result.get("language", "")])
    return ways.setdefault(metric_key(task, score.metric), way) == way


def _equal(one: float | None, other: float | None) -> bool:
    return one is other if one is None or other is None else math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _scores(results: Sequence[Result]) -> dict[str, tuple[Score, list[Result]]]:
    """Scores by metric, each with the evaluations that have it."""
    found: dict[str, tuple[Score, list[Result]]] = {}
    for result in results:
        for score in evaluation_scores(result):
            found.setdefault(score.metric, (score, []))[1].append(result)
    return found


def evaluations_of(entries: Sequence[RunGroup]) -> list[Result]:
    """List the evaluations of texts in the rows of runs."""
    return [result for entry in entries for own in entry.evaluated.values() for result in own]


def text_scores(entry: RunGroup, task: str) -> dict[str, tuple[Score, list[Result]]]:
    """Scores of the texts of a run's student by metric, each with the evaluations that have it."""
    return _scores(entry.evaluated.get(task, ()))


def text_cells(entry: RunGroup) -> dict[str, Cell]:
    """Cells of the texts of a run's student by column, also of metrics that could not be computed."""
    cells: dict[str, Cell] = {}
    for task, results in entry.evaluated.items():
        cells |= {metric_key(task, metric): cell_of(score) for metric, (score, _) in _scores(results).items()}
        timed = [each["real_time_factor"] for each in results if each.get("real_time_factor") is not None]
        if timed:
            cells["real-time-factor"] = Cell(timed[0])
        for result in results:
            for absent in result["absent"]:
                cells.setdefault(metric_key(task, absent["metric"]), Cell(None, reason=absent["reason"]))
    return cells
