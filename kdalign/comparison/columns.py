"""Columns of a comparison table: one for each task and metric, means, and what a model costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kdalign.comparison.comparability import evaluation_scores
from kdalign.comparison.table import Cell, Column, metric_key
from kdalign.metrics.classification import Score
from kdalign.runs.discovery import RunGroup, records_of
from kdalign.runs.record import RunRecord


def tasks_with_means(entries: Sequence[RunGroup]) -> list[str]:
    """Tasks of multi-task rows that get a column for the mean of their metrics: several, all in per cent."""
    several = records_of([entry for entry in entries if len(entry.records) > 1])
    return list(dict.fromkeys(record.task for record in several if len(record.metrics) > 1 and in_per_cent(record)))


def in_per_cent(record: RunRecord) -> bool:
    """True if every score of a run's first split is in per cent and higher is better."""
    return all(score.unit == "%" and score.higher_is_better for score in record.first_scores.student)


def build_columns(
    entries: Sequence[RunGroup], evaluations: Sequence[dict[str, Any]], means: Sequence[str]
) -> list[Column]:
    """Build the columns of a table: scores by task and metric, means over tasks, costs."""
    columns: dict[str, Column] = {}
    for record in records_of(entries):
        for score in record.first_scores.student:
            columns.setdefault(metric_key(record.task, score.metric), _metric_column(record.task, score))
    for result in evaluations:
        for score in evaluation_scores(result):
            if score.metric != "agreement":
                columns.setdefault(metric_key(result["task"], score.metric), _metric_column(result["task"], score))
    for result in evaluations:  # last, metrics without a score, whose unit and direction are not known
        for absent in result["absent"]:
            key = metric_key(result["task"], absent["metric"])
            columns.setdefault(key, Column(key, f"{result['task']} {absent['metric']}", "", 1, task=result["task"]))
    details = [replace(column, detail=column.task in means) for column in columns.values()]
    return [
        Column("size", "params", "M", 1, higher_is_better=False),
        Column("trained", "trained", "M tokens", 1),
        *details,
        *(Column(task, f"{task} mean", "%", 1, task=task) for task in means),
        Column("real-time-factor", "RTF", "", 3, higher_is_better=False),
        Column("macro", "macro", "%", 1),
        Column("agreement", "agreement", "%", 1),
        Column("ece", "ECE", "%", 1, higher_is_better=False),
        Column("retained", "retained", "%", 1),
        Column("parameters", "params", "M", 1, higher_is_better=False, cost=True),
        Column("megabytes", "disk", "MB", 1, higher_is_better=False, cost=True),
        Column("flops", "FLOPs/token", "M", 1, higher_is_better=False, cost=True),
        Column("flops-image", "FLOPs/image", "M", 1, higher_is_better=False, cost=True),
        Column("latency", "latency", "ms", 1, higher_is_better=False, cost=True),
        Column("speed-up", "speed-up", "x", 2, cost=True),
        Column("steps", "steps", "", 0, higher_is_better=False, cost=True, training=True),
        Column("tokens", "tokens", "M", 2, higher_is_better=False, cost=True, training=True),
        Column("positions", "positions", "M", 2, higher_is_better=False, cost=True, training=True),
        Column("samples/s", "samples/s", "", 0, cost=True, training=True),
        Column("seconds", "train", "s", 0, higher_is_better=False, cost=True, training=True),
    ]


def _metric_column(task: str, score: Score) -> Column:
    key, digits = metric_key(task, score.metric), 2 if score.unit == "bits" else 1
    return Column(key, f"{task} {score.metric}", score.unit, digits, score.higher_is_better, task)


def mean_of(parts: Mapping[str, Cell]) -> Cell:
    """Mean of named cells; undefined, with the reasons, if one of them is."""
    missing = [f"{name} is undefined: {cell.reason}" for name, cell in parts.items() if cell.value is None]
    if missing or not parts:
        return Cell(None, reason="; ".join(missing) or "there is nothing to take the mean of")
    return Cell(float(np.mean([cell.value for cell in parts.values()])))


def cell_of(score: Score) -> Cell:
    """Cell of a recorded score."""
    return Cell(score.value, score.low, score.high, reason=score.reason, mark=score.mark)
