"""From records to one table: rows side by side, seeds averaged, the teacher beside its students.

Reads run folders and evaluation files only; no model, no torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.comparison.against import Held, hold_against
from kdalign.comparison.notes import listed, notes_under
from kdalign.comparison.published import marked, read_published, reference_rows
from kdalign.comparison.ranking import Filter, best_first, filtered, mark_best, named
from kdalign.comparison.steps_to_score import Milestone
from kdalign.comparison.table import SHARED, Cell, Column, Comparison, Row, clean, metric_key
from kdalign.metrics.classification import UNDEFINED, reason_of
from kdalign.metrics.intervals import mean_interval
from kdalign.runs.discovery import (
    Beside,
    Entry,
    evaluation_name,
    first_split,
    not_comparable,
    protocols,
    read_all,
    records_of,
    tasks_differ,
    teachers_differ,
    told_apart,
)
from kdalign.runs.record import ModelRecord, RunRecord


def compare(
    paths: Sequence[str | Path],
    metrics: Sequence[str] | None = None,
    sort: str | None = None,
    references: Sequence[str | Path] = (),
    evaluations: Sequence[dict[str, Any]] = (),
    filters: Sequence[str] = (),
    steps_to: Sequence[str] = (),
    beside: Sequence[Beside] = (),
    against: str | None = None,
    kept: Sequence[Entry] = (),
) -> Comparison:
    """Put runs and evaluations side by side.

    Args:
        paths: run folders, folders of runs (one folder per task makes one row), or evaluation files and their folders.
        metrics: columns to show, by their keys, beside those of ``steps_to``; all when left out.
        sort: the column to sort by, best first; rows that others have published stay last.
        references: files of rows that others have published.
        evaluations: results of evaluations, as plain dictionaries, beside those in files.
        filters: conditions that rows must meet, such as ``retained>=95`` or ``name~joint``.
        steps_to: scores on the watched texts, such as ``accuracy=85``, each with the step that reached it first.
        beside: rows that cost nothing to train, from ``beside.rows_beside``.
        against: the name of a row of runs; all others are tested against it.
        kept: an ablation's runs, beside those at the paths.

    Raises:
        UsageError: nothing there, an unfinished run, an unknown column, or a reference file that cannot be read.
    """
    conditions = [Filter.parse(each) for each in filters]
    milestones = [Milestone.parse(each) for each in dict.fromkeys(steps_to)]
    files = {Path(file).resolve(): Path(file) for file in references}
    published = [row for file in files.values() for row in read_published(file)]
    found = read_all(paths)
    entries, results = [*found.entries, *kept], [*evaluations, *found.evaluations]
    groups = _grouped(entries)
    groups = told_apart(groups, [common_name([entry.name for entry in group]) for group in groups])
    entries = [entry for group in groups for entry in group]
    means = _with_means(entries)
    columns = _columns(entries, results, means)
    reached = [column for each in milestones for column in each.columns(entries)]
    columns += reached
    of_teachers = _teacher_rows(entries, means)
    of_runs = [_student_row(group, means, milestones) for group in groups]
    held = hold_against(of_runs, groups, against) if against is not None else Held(tuple(of_runs))
    of_runs = list(held.rows)
    of_results = [_evaluation_row(result, means, results) for result in results]
    rows = [*of_teachers, *_baseline_rows(beside, means, columns), *of_runs, *of_results]
    columns = [column for column in columns if any(_has(row, column) for row in rows)]
    if sort is not None:
        rows = best_first(rows, sort, columns)
    of_others, further = reference_rows(published, columns)
    columns += further
    every = [*rows, *held.differences, *of_others]
    left = {id(row) for row in filtered(every, conditions, columns)}
    rows, of_others = ([row for row in each if id(row) in left] for each in (rows, of_others))
    rows += [row for row in held.differences if id(row) in left]
    if metrics is not None:
        wanted = [column for name in metrics for column in named(name, columns)]
        columns = [column for column in columns if column in wanted or column in reached]
    columns = [column for column in columns if any(_has(row, column) for row in [*rows, *of_others])]
    entries = [entry for row, group in zip(of_runs, groups, strict=True) if id(row) in left for entry in group]
    results = [result for row, result in zip(of_results, results, strict=True) if id(row) in left]
    rows = mark_best(rows, columns, _unranked(entries))
    rows += marked([row for row in of_others if any(_has(row, column) for column in columns)])
    notes = notes_under(entries, results, rows, columns)
    notes += dict.fromkeys(note for each in beside for note in each.notes)
    notes += held.notes_on({row.name for row in rows})
    if conditions:
        said = " and ".join(condition.written for condition in conditions)
        notes.append(f"filter {said}: {len(left)} of {len(every)} rows, of which the best is marked")
    notes += _passed_over(found.passed_over)
    return clean(Comparison(tuple(columns), tuple(rows), tuple(notes), held.judged))


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Runs that differ by seed alone together; a seed that comes again is a row of its own."""
    groups: dict[str, list[Entry]] = {}
    seen: set[tuple[str, int]] = set()
    for number, entry in enumerate(entries):
        again = (entry.key, entry.seed) in seen
        seen.add((entry.key, entry.seed))
        groups.setdefault(f"{entry.key} {number}" if again else entry.key, []).append(entry)
    return list(groups.values())


def _passed_over(places: Mapping[Path, str]) -> list[str]:
    """What was no finished run, by the reason."""
    reasons: dict[str, list[str]] = {}
    for place, why in places.items():
        reasons.setdefault(why, []).append(place.name)
    return [f"passed over: {listed(names)} ({why})" for why, names in reasons.items()]


def _with_means(entries: Sequence[Entry]) -> list[str]:
    """The tasks of rows over several tasks whose metrics have a mean: percentages, more than one."""
    several = records_of([entry for entry in entries if len(entry.records) > 1])
    return list(dict.fromkeys(one.task for one in several if len(one.metrics) > 1 and _in_per_cent(one)))


def _in_per_cent(record: RunRecord) -> bool:
    return all(score["unit"] == "%" and score["higher_is_better"] for score in first_split(record)["student"])


def _columns(entries: Sequence[Entry], evaluations: Sequence[dict[str, Any]], means: Sequence[str]) -> list[Column]:
    columns: dict[str, Column] = {}
    for record in records_of(entries):
        for split in record.scores.values():
            for score in split["student"]:
                columns.setdefault(metric_key(record.task, score["metric"]), _metric_column(record.task, score))
            break
    for result in evaluations:
        for score in result["scores"]:
            if score["metric"] != "agreement":
                columns.setdefault(metric_key(result["task"], score["metric"]), _metric_column(result["task"], score))
    for result in evaluations:  # only then what no model has, whose unit and direction no score says
        for absent in result["absent"]:
            key = metric_key(result["task"], absent["metric"])
            columns.setdefault(key, Column(key, f"{result['task']} {absent['metric']}", "", 1, task=result["task"]))
    details = [replace(column, detail=column.task in means) for column in columns.values()]
    return [
        Column("size", "params", "M", 1, higher_is_better=False),
        Column("trained", "trained", "M tokens", 1),
        *details,
        *(Column(task, f"{task} mean", "%", 1, task=task) for task in means),
        Column("macro", "macro", "%", 1),
        Column("agreement", "agreement", "%", 1),
        Column("ece", "ECE", "%", 1, higher_is_better=False),
        Column("retained", "retained", "%", 1),
        Column("parameters", "params", "M", 1, higher_is_better=False, cost=True),
        Column("megabytes", "disk", "MB", 1, higher_is_better=False, cost=True),
        Column("flops", "FLOPs/token", "M", 1, higher_is_better=False, cost=True),
        Column("latency", "latency", "ms", 1, higher_is_better=False, cost=True),
        Column("speed-up", "speed-up", "x", 2, cost=True),
        Column("steps", "steps", "", 0, higher_is_better=False, cost=True, training=True),
        Column("tokens", "tokens", "M", 2, higher_is_better=False, cost=True, training=True),
        Column("samples/s", "samples/s", "", 0, cost=True, training=True),
        Column("seconds", "train", "s", 0, higher_is_better=False, cost=True, training=True),
    ]


def _metric_column(task: str, score: dict[str, Any]) -> Column:
    key = metric_key(task, score["metric"])
    return Column(
        key,
        f"{task} {score['metric']}",
        score["unit"],
        2 if score["unit"] == "bits" else 1,
        score["higher_is_better"],
        task,
    )


def _mean_of(parts: Mapping[str, Cell]) -> Cell:
    """The mean of numbers by their names; undefined where one is, and never the mean of the others."""
    missing = [f"{name} is undefined: {cell.reason}" for name, cell in parts.items() if cell.value is None]
    if missing or not parts:
        return Cell(None, reason="; ".join(missing) or "there is nothing to take the mean of")
    return Cell(float(np.mean([cell.value for cell in parts.values()])))


def _cell_of(score: Mapping[str, Any]) -> Cell:
    return Cell(score["value"], score["low"], score["high"], reason=reason_of(score), mark=score.get("mark", ""))


def _task_score(scores: Sequence[dict[str, Any]]) -> Cell:
    """A task's one number: the mean of its metrics in per cent, as GLUE averages them, or its primary perplexity."""
    of = [score for score in scores if score["unit"] == "%" or len(scores) == 1] or [scores[0]]
    if len(of) == 1:
        return Cell(of[0]["value"], reason=reason_of(of[0]))
    return _mean_of({score["metric"]: _cell_of(score) for score in of})


def _macro(records: dict[str, RunRecord], who: str) -> Cell:
    found = {task: _task_score(first_split(record)[who]) for task, record in records.items()}
    return _mean_of(found) if len(found) > 1 else next(iter(found.values()))


def _scores_of(entry: Entry, who: str, means: Sequence[str]) -> dict[str, Cell]:
    cells = {}
    for task, record in entry.records.items():
        for score in first_split(record)[who]:
            cells[metric_key(task, score["metric"])] = _cell_of(score)
        if task in means:
            cells[task] = _task_score(first_split(record)[who])
    if len(entry.records) > 1 and all(map(_in_per_cent, entry.records.values())):
        cells["macro"] = _macro(entry.records, who)
    errors = {task: first_split(record).get("calibration", {}).get(who) for task, record in entry.records.items()}
    known = {task: _cell_of(found) for task, found in errors.items() if found is not None}
    if known:
        cells["ece"] = next(iter(known.values())) if len(errors) == 1 else _mean_of(known)
    return cells


def _cost_of(model: ModelRecord) -> dict[str, Cell]:
    cells = {
        "parameters": Cell(model.parameters / 1e6),
        "megabytes": Cell(model.megabytes),
        "latency": Cell(model.latency_ms),
    }
    per_token = model.flops_per_token
    return cells if per_token is None else cells | {"flops": Cell(per_token / 1e6)}


def _teacher_rows(entries: Sequence[Entry], means: Sequence[str]) -> list[Row]:
    """One row per different teacher (its weights, its head, its scores)."""
    rows: dict[str, Row] = {}
    of: dict[str, str] = {}
    tasks_of: dict[str, list[str]] = {}
    for entry in entries:
        record = next(iter(entry.records.values()))
        if record.teacher is None:
            continue
        scores = _scores_of(entry, "teacher", means)
        key = json.dumps([record.teacher.revision, {k: c.value for k, c in scores.items()}], sort_keys=True)
        name = f"teacher {_model_name(record.teacher.source)}"
        cells = _held({**scores, **_cost_of(record.teacher), "retained": Cell(100.0)})
        rows.setdefault(key, Row(name, "teacher", (), cells))
        of.setdefault(key, f"{entry.name}, seed {entry.seed}")
        tasks_of.setdefault(key, sorted(entry.records))
    names = [(row.name, tasks) for row, tasks in zip(rows.values(), tasks_of.values(), strict=True)]
    twice = [names.count(name) > 1 for name in names]
    return [
        replace(row, name=f"{row.name} (of {of[key]})") if again else row
        for (key, row), again in zip(rows.items(), twice, strict=True)
    ]


def _baseline_rows(beside: Sequence[Beside], means: Sequence[str], columns: Sequence[Column]) -> list[Row]:
    """Rows that cost nothing to train; those with the same numbers, as of one teacher's runs, once."""
    tasks = {column.key: column.task for column in columns}
    trained = {column.key for column in columns if column.training}
    rows: dict[str, Row] = {}
    for one in beside:
        model = next(iter(one.entry.records.values())).student
        left_out = trained if model.parameters else trained | set(_cost_of(model))
        cells = {key: cell for key, cell in _student_cells(one.entry, means).items() if key not in left_out}
        for key, cell in cells.items():
            if cell.value is None and not cell.reason:
                cells[key] = replace(cell, reason=one.reasons.get(tasks.get(key, ""), ""))
        name = f"teacher {_model_name(model.source)} in int8" if one.kind == "int8" and model.source else one.kind
        row = Row(name, "baseline", (), cells)
        rows.setdefault(json.dumps([row.name, *sorted((key, cell.value) for key, cell in cells.items())]), row)
    return list(rows.values())


def _student_row(group: Sequence[Entry], means: Sequence[str], milestones: Sequence[Milestone]) -> Row:
    """The mean over seeds, cell by cell; one seed keeps its interval over examples."""
    each = [_student_cells(entry, means) for entry in group]
    for cells, entry in zip(each, group, strict=True):
        for milestone in milestones:
            cells |= milestone.cells(entry)
    if len(group) == 1:
        return Row(group[0].name, "student", (group[0].seed,), each[0])
    cells = {}
    for key in dict.fromkeys(key for cells_of_one in each for key in cells_of_one):
        found = [cells_of_one.get(key, Cell(None, reason="it has none")) for cells_of_one in each]
        values = [cell.value for cell in found]
        if None in values:
            reasons: dict[str, list[int]] = {}
            for entry, cell in zip(group, found, strict=True):
                if cell.value is None:
                    reasons.setdefault(cell.reason or UNDEFINED, []).append(entry.seed)
            told = (f"seed {' '.join(map(str, sorted(seeds)))}: {why}" for why, seeds in reasons.items())
            cells[key] = Cell(None, reason="; ".join(told))
            continue
        known = [value for value in values if value is not None]
        mean, half = mean_interval(known)
        least, most = _range(key, known, group, means)
        cells[key] = Cell(
            mean,
            None if half is None else max(least, mean - half),
            None if half is None else min(most, mean + half),
        )
    seeds = tuple(sorted(entry.seed for entry in group))
    return Row(common_name([entry.name for entry in group]), "student", seeds, _held(cells))


_CORRELATIONS = ("matthews", "pearson", "spearman")
_SHARES = ("accuracy", "f1", "macro_f1", "ece", "macro", "agreement", *_CORRELATIONS)


def _range(key: str, values: Sequence[float], group: Sequence[Entry], means: Sequence[str]) -> tuple[float, float]:
    """The least and the largest value that a column can have: an interval over few seeds ends there.

    What is below 0, or above 100, already, such as a metric of one's own, has no such end.
    """
    metric, least = key.rpartition("/")[2], 0.0
    if metric in _CORRELATIONS or (key in ("macro", "retained", *means) and _correlates(group)):
        least = -100.0 if key != "retained" else -math.inf
    if key == "agreement" and any(_agrees_by_correlation(record) for record in records_of(group)):
        least = -100.0
    most = 100.0 if metric in _SHARES or key in means else math.inf
    return (least if min(values) >= least else -math.inf), (most if max(values) <= most else math.inf)


def _correlates(group: Sequence[Entry]) -> bool:
    """Whether a score of the runs' tasks can be below 0."""
    return any(name in _CORRELATIONS for record in records_of(group) for name in record.metrics)


def _agrees_by_correlation(record: RunRecord) -> bool:
    found = first_split(record)["agreement"]
    return found is not None and str(found["signature"]).startswith("scipy")


def _held(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Cells whose numbers are numbers: a share or a mean of very large ones can be beyond what a float holds."""
    return {
        key: cell
        if all(number is None or math.isfinite(number) for number in (cell.value, cell.low, cell.high))
        else Cell(None, reason="it is beyond what a float holds")
        for key, cell in cells.items()
    }


def _student_cells(entry: Entry, means: Sequence[str]) -> dict[str, Cell]:
    records = list(entry.records.values())
    cells = {**_scores_of(entry, "student", means), **_cost_of(records[0].student)}
    agreements = {task: first_split(record)["agreement"] for task, record in entry.records.items()}
    if None not in agreements.values():  # as without a teacher
        agreed = {task: _cell_of(found) for task, found in agreements.items()}
        cells["agreement"] = next(iter(agreed.values())) if len(agreed) == 1 else _mean_of(agreed)
    taught = all(record.teacher is not None for record in records)
    ours = _macro(entry.records, "student")
    theirs = _macro(entry.records, "teacher") if taught else None
    directions = {score["higher_is_better"] for record in records for score in first_split(record)["student"]}
    if not taught:
        pass  # nothing to be retained
    elif any("tokenizers" in record.data and not _in_per_cent(record) for record in records):
        cells["retained"] = Cell(None, reason="perplexities over different tokens do not compare")
    elif len(records) > 1 and not all(map(_in_per_cent, records)):
        cells["retained"] = Cell(None, reason="the tasks have no mean")
    else:
        cells["retained"] = _retained(ours, theirs or Cell(None), directions)
    teacher = records[0].teacher
    if teacher is not None and teacher.latency_ms and records[0].student.latency_ms:
        cells["speed-up"] = Cell(teacher.latency_ms / records[0].student.latency_ms)
    cells["steps"] = Cell(sum(record.training["steps"] for record in records))
    cells["seconds"] = Cell(sum(record.training["seconds"] for record in records))
    if all("tokens" in record.training for record in records):
        cells["tokens"] = Cell(sum(record.training["tokens"] for record in records) / 1e6)
    cells["samples/s"] = Cell(sum(r.training["examples"] for r in records) / (cells["seconds"].value or 1))
    return _held(cells)


def _retained(ours: Cell, theirs: Cell, directions: set[bool]) -> Cell:
    """The student's score as a share of its teacher's, in per cent; of perplexities and errors the other way round."""
    if ours.value is None:
        return Cell(None, reason=f"the student's score is undefined: {ours.reason}")
    if theirs.value is None:
        return Cell(None, reason=f"the teacher's score is undefined: {theirs.reason}")
    if len(directions) > 1:
        return Cell(None, reason="the metrics have different directions")
    if not theirs.value > 0:
        return Cell(None, reason=f"the teacher's score, {theirs.value:.4g}, is not above 0")
    if directions == {True}:
        return Cell(100 * ours.value / theirs.value)
    if not ours.value > 0:
        return Cell(None, reason=f"the student's score, {ours.value:.4g}, is not above 0")
    return Cell(100 * theirs.value / ours.value)


def _evaluation_row(result: dict[str, Any], means: Sequence[str], others: Sequence[dict[str, Any]]) -> Row:
    cells = {
        (s["metric"] if s["metric"] == "agreement" else metric_key(result["task"], s["metric"])): _cell_of(s)
        for s in result["scores"]
    }
    for key in ("size", "trained"):
        number = result.get({"size": "parameters", "trained": "trained_tokens"}[key])
        if number is not None:
            cells[key] = Cell(number / 1e6)
    for absent in result["absent"]:
        reason = absent["reason"] + (f"; {absent['command']} makes one" if absent["command"] else "")
        cells[metric_key(result["task"], absent["metric"])] = Cell(None, reason=reason)
    own = [score for score in result["scores"] if score["metric"] != "agreement"]
    if result["task"] in means and own and not result["absent"]:
        cells[result["task"]] = _task_score(own)
    kind = "baseline" if result.get("kind") == "baseline" else "evaluation"
    return Row(evaluation_name(result, others), kind, (), cells)


def common_name(names: Sequence[str]) -> str:
    """What the names of one recipe's runs have in common."""
    prefix = names[0]
    for name in names[1:]:
        while not name.startswith(prefix):
            prefix = prefix[:-1]
    return prefix.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or names[0]


def _model_name(source: str) -> str:
    """The last part of a model's name that says something."""
    parts = [part for part in Path(source).parts if part.lower() not in ("model", "student", "checkpoint")]
    return parts[-1] if parts else source


def _has(row: Row, column: Column) -> bool:
    return column.key in row.cells


def _unranked(entries: Sequence[Entry]) -> set[str]:
    """Tasks and columns in which no row is best: other data, versions, tokens, teachers or tasks from row to row."""
    tokens = set(not_comparable(entries))
    mixed = {task for task, protocols in protocols(entries).items() if len(protocols) > 1}
    if mixed or tasks_differ(entries):
        return mixed | tokens | set(SHARED)
    return tokens | ({"agreement", "retained"} if teachers_differ(entries) else set())
