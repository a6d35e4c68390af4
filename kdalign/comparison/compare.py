"""From records to one table: rows side by side, seeds averaged, the teacher beside its students.

Reads run folders and evaluation files only; no model, no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdalign.comparison.against import BaselineTests, test_against
from kdalign.comparison.columns import build_columns, with_means
from kdalign.comparison.comparability import (
    find_incomparable,
    find_protocols,
    have_different_tasks,
    have_different_teachers,
)
from kdalign.comparison.notes import footnotes, list_names
from kdalign.comparison.published import mark_sources, read_published, reference_rows
from kdalign.comparison.ranking import Filter, apply_filters, mark_best, resolve_columns, sort_rows
from kdalign.comparison.rows import baseline_rows, common_name, evaluation_row, has_score, student_row, teacher_rows
from kdalign.comparison.steps_to_score import ScoreTarget
from kdalign.comparison.table import SHARED, ComparisonTable, clean_text
from kdalign.runs.discovery import BaselineRow, RunGroup, disambiguate, discover


def compare(
    paths: Sequence[str | Path],
    metrics: Sequence[str] | None = None,
    sort: str | None = None,
    references: Sequence[str | Path] = (),
    evaluations: Sequence[dict[str, Any]] = (),
    filters: Sequence[str] = (),
    steps_to: Sequence[str] = (),
    beside: Sequence[BaselineRow] = (),
    against: str | None = None,
    kept: Sequence[RunGroup] = (),
) -> ComparisonTable:
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
    milestones = [ScoreTarget.parse(each) for each in dict.fromkeys(steps_to)]
    files = {Path(file).resolve(): Path(file) for file in references}
    published = [row for file in files.values() for row in read_published(file)]
    found = discover(paths)
    entries, results = [*found.entries, *kept], [*evaluations, *found.evaluations]
    groups = _grouped(entries)
    groups = disambiguate(groups, [common_name([entry.name for entry in group]) for group in groups])
    entries = [entry for group in groups for entry in group]
    means = with_means(entries)
    columns = build_columns(entries, results, means)
    reached = [column for each in milestones for column in each.columns(entries)]
    columns += reached
    of_teachers = teacher_rows(entries, means)
    of_runs = [student_row(group, means, milestones) for group in groups]
    held = test_against(of_runs, groups, against) if against is not None else BaselineTests(tuple(of_runs))
    of_runs = list(held.rows)
    of_results = [evaluation_row(result, means, results) for result in results]
    rows = [*of_teachers, *baseline_rows(beside, means, columns), *of_runs, *of_results]
    columns = [column for column in columns if any(has_score(row, column) for row in rows)]
    if sort is not None:
        rows = sort_rows(rows, sort, columns)
    of_others, further = reference_rows(published, columns)
    columns += further
    every = [*rows, *held.differences, *of_others]
    left = {id(row) for row in apply_filters(every, conditions, columns)}
    rows, of_others = ([row for row in each if id(row) in left] for each in (rows, of_others))
    rows += [row for row in held.differences if id(row) in left]
    if metrics is not None:
        wanted = [column for name in metrics for column in resolve_columns(name, columns)]
        columns = [column for column in columns if column in wanted or column in reached]
    columns = [column for column in columns if any(has_score(row, column) for row in [*rows, *of_others])]
    entries = [entry for row, group in zip(of_runs, groups, strict=True) if id(row) in left for entry in group]
    results = [result for row, result in zip(of_results, results, strict=True) if id(row) in left]
    rows = mark_best(rows, columns, _unranked(entries))
    rows += mark_sources([row for row in of_others if any(has_score(row, column) for column in columns)])
    notes = footnotes(entries, results, rows, columns)
    notes += dict.fromkeys(note for each in beside for note in each.notes)
    notes += held.notes_on({row.name for row in rows})
    if conditions:
        said = " and ".join(condition.written for condition in conditions)
        notes.append(f"filter {said}: {len(left)} of {len(every)} rows, of which the best is marked")
    notes += _passed_over(found.passed_over)
    return clean_text(ComparisonTable(tuple(columns), tuple(rows), tuple(notes), held.judged))


def _grouped(entries: Sequence[RunGroup]) -> list[list[RunGroup]]:
    """Runs that differ by seed alone together; a seed that comes again is a row of its own."""
    groups: dict[str, list[RunGroup]] = {}
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
    return [f"passed over: {list_names(names)} ({why})" for why, names in reasons.items()]


def _unranked(entries: Sequence[RunGroup]) -> set[str]:
    """Tasks and columns in which no row is best: other data, versions, tokens, teachers or tasks from row to row."""
    tokens = set(find_incomparable(entries))
    mixed = {task for task, protocols in find_protocols(entries).items() if len(protocols) > 1}
    if mixed or have_different_tasks(entries):
        return mixed | tokens | set(SHARED)
    return tokens | ({"agreement", "retained"} if have_different_teachers(entries) else set())
