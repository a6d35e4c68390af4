"""From records to one table: rows side by side, seeds averaged, the teacher beside its students.

Reads run folders and evaluation files only; no model, no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.entries import (
    Entry,
    evaluation_name,
    first_split,
    protocols,
    read_entries,
    read_evaluation,
    records_of,
    tasks_differ,
    teachers_differ,
)
from kdalign.errors import UsageError, unknown
from kdalign.notes import notes_under
from kdalign.published import marked, read_published, reference_rows
from kdalign.runs import RECORD, ModelRecord, RunRecord
from kdalign.statistics import mean_interval
from kdalign.table import SHARED, Cell, Column, Comparison, Row, metric_key


def compare(
    paths: Sequence[str | Path],
    metrics: Sequence[str] | None = None,
    sort: str | None = None,
    references: Sequence[str | Path] = (),
    evaluations: Sequence[dict[str, Any]] = (),
) -> Comparison:
    """Put runs and evaluations side by side.

    Args:
        paths: run folders, folders of runs (one folder per task makes one row), or evaluation files.
        metrics: columns to show, by their keys; all when left out.
        sort: the column to sort by, best first; rows that others have published stay last.
        references: files of rows that others have published.
        evaluations: results of evaluations, as plain dictionaries, beside those in files.

    Raises:
        UsageError: nothing there, an unfinished run, an unknown column, or a reference file that cannot be read.
    """
    files = {Path(file).resolve(): Path(file) for file in references}
    published = [row for file in files.values() for row in read_published(file)]
    entries: list[Entry] = []
    evaluations = list(evaluations)
    for path in dict.fromkeys(Path(path).resolve() for path in paths):
        if path.is_file() and path.name != RECORD:
            evaluations += read_evaluation(path)
        else:
            entries += read_entries(path)
    entries = [entry for number, entry in enumerate(entries) if entry not in entries[:number]]
    groups: dict[str, list[Entry]] = {}
    for number, entry in enumerate(entries):
        again = any(entry.key == other.key and entry.seed == other.seed for other in entries[:number])
        groups.setdefault(f"{entry.key} {number}" if again else entry.key, []).append(entry)
    means = _with_means(entries)
    columns = _columns(entries, evaluations, means)
    rows = _teacher_rows(entries, means)
    rows += [_student_row(group, means) for group in groups.values()]
    rows += [_evaluation_row(result, means, evaluations) for result in evaluations]
    columns = [column for column in columns if any(_has(row, column) for row in rows)]
    if sort is not None:
        by = _named(sort, columns)
        if len(by) > 1:
            raise UsageError(f"--sort {sort!r}: which one? (accepted: {', '.join(column.key for column in by)})")
        rows = sorted(rows, key=lambda row: _rank(row.cells.get(by[0].key), by[0]))
    beside, further = reference_rows(published, columns)
    columns += further
    if metrics is not None:
        wanted = [column for name in metrics for column in _named(name, columns)]
        columns = [column for column in columns if column in wanted]
    rows = _mark_best(rows, columns, _mixed(entries))
    rows += marked([row for row in beside if any(_has(row, column) for column in columns)])
    return Comparison(tuple(columns), tuple(rows), tuple(notes_under(entries, evaluations, rows, columns)))


def _named(name: str, columns: Sequence[Column]) -> list[Column]:
    """The columns that a name stands for: a key, or a metric of every task that has it."""
    found = [column for column in columns if name == column.key]
    found = found or [
        column
        for column in columns
        if (column.task or column.published) and column.key == metric_key(column.task, name, column.published)
    ]
    if not found:
        raise unknown("column", name, [column.key for column in columns])
    return found


def _with_means(entries: Sequence[Entry]) -> list[str]:
    """The tasks of rows over several tasks whose metrics have a mean: percentages, more than one."""
    several = records_of([entry for entry in entries if len(entry.records) > 1])
    return list(dict.fromkeys(one.task for one in several if len(one.metrics) > 1 and _in_per_cent(one)))


def _in_per_cent(record: RunRecord) -> bool:
    return all(score["unit"] == "%" for score in first_split(record)["student"])


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
        Column("retained", "retained", "%", 1),
        Column("parameters", "params", "M", 1, higher_is_better=False, cost=True),
        Column("megabytes", "disk", "MB", 1, higher_is_better=False, cost=True),
        Column("latency", "latency", "ms", 1, higher_is_better=False, cost=True),
        Column("speed-up", "speed-up", "x", 2, cost=True),
        Column("steps", "steps", "", 0, higher_is_better=False, cost=True),
        Column("samples/s", "samples/s", "", 0, cost=True),
        Column("seconds", "train", "s", 0, higher_is_better=False, cost=True),
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


def _task_score(scores: Sequence[dict[str, Any]]) -> float | None:
    """A task's one number: the mean of its metrics in per cent, as GLUE averages them, or its primary perplexity."""
    values = [score["value"] for score in scores if score["unit"] == "%" or len(scores) == 1] or [scores[0]["value"]]
    return None if None in values else float(np.mean(values))


def _macro(records: dict[str, RunRecord], who: str) -> float | None:
    values = [_task_score(first_split(record)[who]) for record in records.values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _scores_of(entry: Entry, who: str, means: Sequence[str]) -> dict[str, Cell]:
    cells = {}
    for task, record in entry.records.items():
        for score in first_split(record)[who]:
            cells[metric_key(task, score["metric"])] = Cell(score["value"], score["low"], score["high"])
        if task in means:
            cells[task] = Cell(_task_score(first_split(record)[who]))
    if len(entry.records) > 1 and all(map(_in_per_cent, entry.records.values())):
        cells["macro"] = Cell(_macro(entry.records, who))
    return cells


def _cost_of(model: ModelRecord) -> dict[str, Cell]:
    return {
        "parameters": Cell(model.parameters / 1e6),
        "megabytes": Cell(model.megabytes),
        "latency": Cell(model.latency_ms),
    }


def _teacher_rows(entries: Sequence[Entry], means: Sequence[str]) -> list[Row]:
    """One row per different teacher (its weights, its head, its scores)."""
    rows: dict[str, Row] = {}
    for entry in entries:
        record = next(iter(entry.records.values()))
        if record.teacher is None:
            continue
        scores = _scores_of(entry, "teacher", means)
        key = json.dumps([record.teacher.revision, {k: c.value for k, c in scores.items()}], sort_keys=True)
        name = f"teacher {_model_name(record.teacher.source)}"
        rows.setdefault(key, Row(name, "teacher", (), {**scores, **_cost_of(record.teacher), "retained": Cell(100.0)}))
    return list(rows.values())


def _student_row(group: Sequence[Entry], means: Sequence[str]) -> Row:
    """The mean over seeds, cell by cell; one seed keeps its interval over examples."""
    each = [_student_cells(entry, means) for entry in group]
    if len(group) == 1:
        return Row(group[0].name, "student", (group[0].seed,), each[0])
    cells = {}
    for key in dict.fromkeys(key for cells_of_one in each for key in cells_of_one):
        found = [cells_of_one.get(key, Cell(None, reason="a seed lacks it")) for cells_of_one in each]
        values = [cell.value for cell in found]
        if None in values:
            reasons = {cell.reason or "undefined for a seed" for cell in found if cell.value is None}
            cells[key] = Cell(None, reason=" or ".join(sorted(reasons)))
            continue
        mean, half = mean_interval([value for value in values if value is not None])
        cells[key] = Cell(mean, None if half is None else mean - half, None if half is None else mean + half)
    seeds = tuple(sorted(entry.seed for entry in group))
    return Row(common_name([entry.name for entry in group]), "student", seeds, cells)


def _student_cells(entry: Entry, means: Sequence[str]) -> dict[str, Cell]:
    records = list(entry.records.values())
    cells = {**_scores_of(entry, "student", means), **_cost_of(records[0].student)}
    agreements = [first_split(record)["agreement"] for record in records]
    if None in agreements:  # trained without a teacher
        agreements = []
    known = [found["value"] for found in agreements if found["value"] is not None]
    if len(agreements) == 1:
        cells["agreement"] = Cell(agreements[0]["value"], agreements[0]["low"], agreements[0]["high"])
    elif agreements and len(known) == len(agreements):
        cells["agreement"] = Cell(float(np.mean(known)))
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
    elif ours is None:
        cells["retained"] = Cell(None, reason="the student's score is undefined")
    elif theirs is None or not theirs > 0:
        cells["retained"] = Cell(None, reason="the teacher's score is not above 0")
    elif directions == {True}:
        cells["retained"] = Cell(100 * ours / theirs)
    elif directions == {False} and ours > 0:
        cells["retained"] = Cell(100 * theirs / ours)
    else:
        cells["retained"] = Cell(None, reason="the metrics have different directions")
    teacher = records[0].teacher
    if teacher is not None and teacher.latency_ms and records[0].student.latency_ms:
        cells["speed-up"] = Cell(teacher.latency_ms / records[0].student.latency_ms)
    cells["steps"] = Cell(sum(record.training["steps"] for record in records))
    cells["seconds"] = Cell(sum(record.training["seconds"] for record in records))
    cells["samples/s"] = Cell(sum(r.training["examples"] for r in records) / (cells["seconds"].value or 1))
    return cells


def _evaluation_row(result: dict[str, Any], means: Sequence[str], others: Sequence[dict[str, Any]]) -> Row:
    cells = {
        (s["metric"] if s["metric"] == "agreement" else metric_key(result["task"], s["metric"])): Cell(
            s["value"], s["low"], s["high"], mark=s.get("mark", "")
        )
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
        cells[result["task"]] = Cell(_task_score(own))
    return Row(evaluation_name(result, others), "evaluation", (), cells)


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


def _rank(cell: Cell | None, column: Column) -> float:
    if cell is None or cell.value is None:
        return float("inf")
    return -cell.value if column.higher_is_better else cell.value


def _mixed(entries: Sequence[Entry]) -> set[str]:
    """Tasks and columns in which no row is best: other data, versions, teachers or tasks from row to row."""
    mixed = {task for task, protocols in protocols(entries).items() if len(protocols) > 1}
    if mixed or tasks_differ(entries):
        return mixed | set(SHARED)
    return {"agreement", "retained"} if teachers_differ(entries) else set()


def _mark_best(rows: Sequence[Row], columns: Sequence[Column], mixed: set[str]) -> list[Row]:
    """Mark the best run of each score, equal ones all; nothing where rows were scored on different data."""
    marked = {id(row): dict(row.cells) for row in rows}
    for column in columns:
        students = [row for row in rows if row.kind == "student"]
        if (column.task or column.key) in mixed:
            continue
        values = [_rank(row.cells.get(column.key), column) for row in students]
        if column.cost or sum(value < float("inf") for value in values) < 2:
            continue
        for row, value in zip(students, values, strict=True):
            if round(value - min(values), 6) == 0:
                marked[id(row)][column.key] = replace(row.cells[column.key], best=True)
    return [replace(row, cells=marked[id(row)]) for row in rows]
