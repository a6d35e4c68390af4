"""Rows of a comparison table: teachers, baselines, students over seeds, evaluations."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdalign.comparison.columns import cell_of, in_per_cent, mean_of
from kdalign.comparison.comparability import evaluation_name, evaluation_scores
from kdalign.comparison.evaluated_runs import text_cells
from kdalign.comparison.steps_to_score import ScoreTarget
from kdalign.comparison.table import Cell, Column, Row, metric_key
from kdalign.metrics.classification import UNDEFINED, Score
from kdalign.metrics.intervals import mean_interval
from kdalign.runs.discovery import BaselineRow, RunGroup, records_of
from kdalign.runs.record import ModelRecord, RunRecord


def _task_score(scores: Sequence[Score]) -> Cell:
    """A task's one number: the mean of its metrics in per cent, as GLUE averages them, or its primary perplexity."""
    averaged = [score for score in scores if score.unit == "%" or len(scores) == 1] or [scores[0]]
    if len(averaged) == 1:
        return Cell(averaged[0].value, reason=averaged[0].reason)
    return mean_of({score.metric: cell_of(score) for score in averaged})


def _macro(records: dict[str, RunRecord], who: str) -> Cell:
    scores = {task: _task_score(record.first_scores.of(who)) for task, record in records.items()}
    return mean_of(scores) if len(scores) > 1 else next(iter(scores.values()))


def _scores_of(entry: RunGroup, who: str, means: Sequence[str]) -> dict[str, Cell]:
    cells = {}
    for task, record in entry.records.items():
        for score in record.first_scores.of(who):
            cells[metric_key(task, score.metric)] = cell_of(score)
        if task in means and record.first_scores.of(who):
            cells[task] = _task_score(record.first_scores.of(who))
    scored = all(record.first_scores.of(who) for record in entry.records.values())
    if len(entry.records) > 1 and scored and all(map(in_per_cent, entry.records.values())):
        cells["macro"] = _macro(entry.records, who)
    errors = {task: record.first_scores.calibration.get(who) for task, record in entry.records.items()}
    known = {task: cell_of(error) for task, error in errors.items() if error is not None}
    if known:
        cells["ece"] = next(iter(known.values())) if len(errors) == 1 else mean_of(known)
    return cells


def _cost_of(model: ModelRecord) -> dict[str, Cell]:
    cells = {"parameters": Cell(model.parameters / 1e6), "megabytes": Cell(model.megabytes)}
    if model.latency_ms is not None:
        cells["latency"] = Cell(model.latency_ms)
    per_token = model.flops_per_token
    key = "flops-image" if model.modality == "image" else "flops"
    return cells if per_token is None else cells | {key: Cell(per_token / 1e6)}


def teacher_rows(entries: Sequence[RunGroup], means: Sequence[str]) -> list[Row]:
    """Rows of teachers, one for each combination of weights, head and scores: of several each, then all combined.

    Those behind an API have no cost.
    """
    rows: dict[str, Row] = {}
    first_run: dict[str, str] = {}
    tasks: dict[str, list[str]] = {}
    for entry in entries:
        record = next(iter(entry.records.values()))
        if record.teacher is None and not record.first_scores.teacher:
            continue
        scores = _scores_of(entry, "teacher", means)
        which = record.served_teacher if record.teacher is None else record.teacher.revision
        key = json.dumps([which, {k: c.value for k, c in scores.items()}], sort_keys=True)
        several = len(record.teachers)
        source = record.recipe["teacher"] if record.teacher is None else _model_name(record.teacher.source)
        name = f"{several} teachers combined" if several else f"teacher {source}"
        cost = {} if record.teacher is None else _cost_of(record.teacher)
        cells = _finite({**scores, **cost, **({"retained": Cell(100.0)} if scores else {})})
        found = [_one_of_several(entry, number, means) for number in range(several)]
        for known, row in (*found, (key, Row(name, "teacher", (), cells))):
            first = rows.setdefault(known, row)
            rows[known] = replace(first, cells={**row.cells, **first.cells})  # costs that the first run left out
            first_run.setdefault(known, f"{entry.name}, seed {entry.seed}")
            tasks.setdefault(known, sorted(entry.records))
    names = [(row.name, tasks[key]) for key, row in rows.items()]
    return [
        replace(row, name=f"{row.name} (of {first_run[key]})") if names.count((row.name, tasks[key])) > 1 else row
        for key, row in rows.items()
    ]


def _one_of_several(entry: RunGroup, number: int, means: Sequence[str]) -> tuple[str, Row]:
    """Row of one of several teachers, with its key; its retained share is of their joint score."""
    own, teacher = _with_teacher(entry, number), next(iter(entry.records.values())).teachers[number]
    scores = _scores_of(own, "teacher", means)
    key = json.dumps([teacher.revision, {k: c.value for k, c in scores.items()}], sort_keys=True)
    directions = {score.higher_is_better for record in own.records.values() for score in record.first_scores.teacher}
    share = _share_of(_macro(own.records, "teacher"), _macro(entry.records, "teacher"), directions)
    cells = {**scores, **_cost_of(teacher), "retained": share}
    if any("teacher" in record.first_scores.calibration for record in entry.records.values()):
        cells["ece"] = Cell(None, reason="computed only for the teachers combined")
    return key, Row(f"teacher {_model_name(teacher.source)}", "teacher", (), _finite(cells))


def _with_teacher(entry: RunGroup, number: int) -> RunGroup:
    """Runs with one of their several teachers in place of all combined."""

    def alone(record: RunRecord) -> RunRecord:
        scores = {
            split: {**tree, "teacher": tree["teachers"][number], "calibration": {}}
            for split, tree in record.scores.items()
        }
        return replace(record, teacher=record.teachers[number], scores=scores)

    return replace(entry, records={task: alone(record) for task, record in entry.records.items()})


def baseline_rows(baselines: Sequence[BaselineRow], means: Sequence[str], columns: Sequence[Column]) -> list[Row]:
    """Rows of training-free baselines; rows with the same numbers, such as those of one teacher's runs, once."""
    tasks = {column.key: column.task for column in columns}
    trained = {column.key for column in columns if column.training}
    rows: dict[str, Row] = {}
    for baseline in baselines:
        model = next(iter(baseline.entry.records.values())).student
        left_out = trained if model.parameters else trained | set(_cost_of(model))
        cells = {key: cell for key, cell in _student_cells(baseline.entry, means).items() if key not in left_out}
        for key, cell in cells.items():
            if cell.value is None and not cell.reason:
                cells[key] = replace(cell, reason=baseline.reasons.get(tasks.get(key, ""), ""))
        quantized = baseline.kind == "int8" and model.source
        name = f"teacher {_model_name(model.source)} in int8" if quantized else baseline.kind
        row = Row(name, "baseline", (), cells)
        rows.setdefault(json.dumps([row.name, *sorted((key, cell.value) for key, cell in cells.items())]), row)
    return list(rows.values())


def student_row(group: Sequence[RunGroup], means: Sequence[str], targets: Sequence[ScoreTarget]) -> Row:
    """Row of a student: the mean over seeds, cell by cell; a single seed keeps its intervals over examples."""
    by_seed = [_student_cells(entry, means) for entry in group]
    for cells, entry in zip(by_seed, group, strict=True):
        for target in targets:
            cells |= target.cells(entry)
    if len(group) == 1:
        return Row(group[0].name, "student", (group[0].seed,), by_seed[0])
    absent = Cell(None, reason="it has none")
    averaged = {
        key: _mean_over_seeds(key, [cells.get(key, absent) for cells in by_seed], group, means)
        for key in dict.fromkeys(key for cells in by_seed for key in cells)
    }
    seeds = tuple(sorted(entry.seed for entry in group))
    return Row(common_name([entry.name for entry in group]), "student", seeds, _finite(averaged))


def _mean_over_seeds(key: str, cells: Sequence[Cell], group: Sequence[RunGroup], means: Sequence[str]) -> Cell:
    """The mean of a column over seeds, with its t-interval; undefined, with the seeds, if one is."""
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) < len(cells):
        reasons: dict[str, list[int]] = {}
        for entry, cell in zip(group, cells, strict=True):
            if cell.value is None:
                reasons.setdefault(cell.reason or UNDEFINED, []).append(entry.seed)
        by_seed = (f"seed {' '.join(map(str, sorted(seeds)))}: {reason}" for reason, seeds in reasons.items())
        return Cell(None, reason="; ".join(by_seed))
    mean, half = mean_interval(values)
    if half is None:
        return Cell(mean)
    least, most = _range(key, values, group, means)
    return Cell(mean, max(least, mean - half), min(most, mean + half))


_CORRELATIONS = ("matthews", "pearson", "spearman")


_OF_TEXTS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "distinct1", "distinct2")
_SHARES = ("accuracy", "f1", "macro_f1", "ece", "macro", "agreement", *_CORRELATIONS, *_OF_TEXTS)


def _range(key: str, values: Sequence[float], group: Sequence[RunGroup], means: Sequence[str]) -> tuple[float, float]:
    """The smallest and the largest value that a column can have, where intervals over few seeds are cut.

    A column with values below 0, or above 100, such as a user's own metric, has no such end.
    """
    metric, least = key.rpartition("/")[2], 0.0
    if metric in _CORRELATIONS or (key in ("macro", "retained", *means) and _correlates(group)):
        least = -100.0 if key != "retained" else -math.inf
    if key == "agreement" and any(_agrees_by_correlation(record) for record in records_of(group)):
        least = -100.0
    most = 100.0 if metric in _SHARES or key in means else math.inf
    return (least if min(values) >= least else -math.inf), (most if max(values) <= most else math.inf)


def _correlates(group: Sequence[RunGroup]) -> bool:
    """True if a score of the runs' tasks can be below 0."""
    return any(name in _CORRELATIONS for record in records_of(group) for name in record.metrics)


def _agrees_by_correlation(record: RunRecord) -> bool:
    agreement = record.first_scores.agreement
    return agreement is not None and agreement.signature.startswith("scipy")


def _finite(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Cells with finite numbers: a ratio or a mean of very large ones can overflow, and is then undefined."""
    return {
        key: cell
        if all(number is None or math.isfinite(number) for number in (cell.value, cell.low, cell.high))
        else Cell(None, reason="it is beyond what a float holds")
        for key, cell in cells.items()
    }


def _student_cells(entry: RunGroup, means: Sequence[str]) -> dict[str, Cell]:
    records = list(entry.records.values())
    cells = {**_scores_of(entry, "student", means), **_cost_of(records[0].student)}
    cells |= text_cells(entry)
    agreements = {task: record.first_scores.agreement for task, record in entry.records.items()}
    agreed = {task: cell_of(agreement) for task, agreement in agreements.items() if agreement is not None}
    if len(agreed) == len(agreements):  # not without a teacher
        cells["agreement"] = next(iter(agreed.values())) if len(agreed) == 1 else mean_of(agreed)
    taught = all(record.served_teacher or record.teacher is not None for record in records)
    if taught and all(record.first_scores.teacher for record in records):
        cells["retained"] = _retained(entry.records)
    teacher, student = records[0].teacher, records[0].student
    alike = teacher is not None and teacher.modality == student.modality  # a token takes no frame's time
    if teacher is not None and alike and teacher.latency_ms and student.latency_ms:
        cells["speed-up"] = Cell(teacher.latency_ms / student.latency_ms)
    cells["steps"] = Cell(sum(record.cost.steps for record in records))
    cells["seconds"] = Cell(sum(record.cost.seconds for record in records))
    if all("tokens" in record.training for record in records):
        unit = "tokens" if records[0].student.modality == "text" else "positions"
        cells[unit] = Cell(sum(record.cost.tokens for record in records) / 1e6)
    cells["samples/s"] = Cell(sum(record.cost.examples for record in records) / (cells["seconds"].value or 1))
    return _finite(cells)


def _retained(records: dict[str, RunRecord]) -> Cell:
    """The student's score as a share of its teacher's, in per cent; inverted for perplexities and errors."""
    if any("tokenizers" in record.data and not in_per_cent(record) for record in records.values()):
        return Cell(None, reason="perplexities over different tokens do not compare")
    if len(records) > 1 and not all(map(in_per_cent, records.values())):
        return Cell(None, reason="the tasks have no mean")
    directions = {score.higher_is_better for record in records.values() for score in record.first_scores.student}
    return _share_of(_macro(records, "student"), _macro(records, "teacher"), directions)


def _share_of(ours: Cell, theirs: Cell, directions: set[bool]) -> Cell:
    """A student's score over its teacher's in per cent, inverted if lower is better; both must be above 0."""
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


def rows_of_evaluations(
    results: Sequence[dict[str, Any]], means: Sequence[str]
) -> list[tuple[Row, Sequence[dict[str, Any]]]]:
    """Rows of models that were evaluated without being runs, each with its results.

    Results that name a row, as those of a suite do, share it, models and baselines apart, unless they are of one task:
    then they are of several suites. Any other result is a row of its own.
    """
    groups: list[list[dict[str, Any]]] = []
    for result in results:
        mine = next((group for group in groups if _shares_row(result, group)), None)
        if mine is None:
            groups.append([result])
        else:
            mine.append(result)
    return [(_evaluation_row(group, means, results), group) for group in groups]


def _shares_row(result: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a result stands in the row of others."""
    first = group[0]
    same = bool(result.get("row")) and result["row"] == first.get("row")
    baselines = [one.get("kind") == "baseline" for one in (result, first)]
    return same and baselines[0] == baselines[1] and all(one["task"] != result["task"] for one in group)


def _evaluation_row(group: Sequence[dict[str, Any]], means: Sequence[str], others: Sequence[dict[str, Any]]) -> Row:
    """One row of results, which are of different tasks if there are several."""
    cells: dict[str, Cell] = {}
    for result in group:
        own = _cells_of_result(result, means)
        for key in ("agreement", "real-time-factor"):  # of no task, so that the row has no one value of several
            if key in own and key in cells:
                own[key] = Cell(None, reason="it differs from task to task")
        cells |= own
    for key, field, noun in (("size", "parameters", "parameters"), ("trained", "trained_tokens", "tokens")):
        numbers = {result["task"]: result.get(field) for result in group if result["scores"]}
        known = [number for number in numbers.values() if number is not None]
        if len(set(numbers.values())) > 1:
            said = {task: "unknown" if one is None else f"{one / 1e6:.1f} M {noun}" for task, one in numbers.items()}
            each = ", ".join(f"{what} on {task}" for task, what in said.items())
            cells[key] = Cell(None, reason=f"several models: {each}")
        elif known:
            cells[key] = Cell(known[0] / 1e6)
    kind = "baseline" if group[0].get("kind") == "baseline" else "evaluation"
    return Row(group[0].get("row") or evaluation_name(group[0], others), kind, (), cells)


def _cells_of_result(result: dict[str, Any], means: Sequence[str]) -> dict[str, Cell]:
    scores = evaluation_scores(result)
    cells = {
        (score.metric if score.metric == "agreement" else metric_key(result["task"], score.metric)): cell_of(score)
        for score in scores
    }
    if result.get("real_time_factor") is not None:
        cells["real-time-factor"] = Cell(result["real_time_factor"])
    for absent in result["absent"]:
        reason = absent["reason"] + (f"; {absent['command']} makes one" if absent["command"] else "")
        cells[metric_key(result["task"], absent["metric"])] = Cell(None, reason=reason)
    own = [score for score in scores if score.metric != "agreement"]
    if result["task"] in means and own and not result["absent"]:
        cells[result["task"]] = _task_score(own)
    return cells


def common_name(names: Sequence[str]) -> str:
    """The common start of the names of one recipe's runs, without the word ``seed``."""
    prefix = names[0]
    for name in names[1:]:
        while not name.startswith(prefix):
            prefix = prefix[:-1]
    return prefix.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or names[0]


def _model_name(source: str) -> str:
    """The last part of a model's name that is not a generic folder name."""
    parts = [part for part in Path(source).parts if part.lower() not in ("model", "student", "checkpoint")]
    return parts[-1] if parts else source


def has_score(row: Row, column: Column) -> bool:
    """True if a row has a cell in a column."""
    return column.key in row.cells
