"""Compare runs and evaluations in one table: seeds averaged, teachers next to their students.

Reads run folders and evaluation files only; no model, no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdalign.comparison.against import BaselineTests, compare_against
from kdalign.comparison.columns import build_columns, tasks_with_means
from kdalign.comparison.comparability import (
    find_incomparable,
    find_protocols,
    have_different_tasks,
    have_different_teachers,
    scored_splits,
)
from kdalign.comparison.evaluated_runs import evaluations_of, join_evaluations
from kdalign.comparison.notes import footnotes
from kdalign.comparison.published import Published, mark_sources, read_published, reference_rows
from kdalign.comparison.ranking import Filter, apply_filters, mark_best, resolve_columns, sort_rows
from kdalign.comparison.rows import (
    baseline_rows,
    common_name,
    has_score,
    rows_of_evaluations,
    student_row,
    teacher_rows,
)
from kdalign.comparison.steps_to_score import ScoreTarget
from kdalign.comparison.table import SHARED, Column, ComparisonTable, Row, clean_text, list_names
from kdalign.runs.discovery import BaselineRow, Discovery, RunGroup, disambiguate, discover


@dataclass(frozen=True)
class CompareOptions:
    """Columns, rows and tests of a comparison table.

    Attributes:
        metrics: columns to show, by key or metric, in addition to those of ``steps_to``; None shows all.
        sort: the column to sort by, best first; published rows stay last.
        filters: conditions that rows must meet, such as ``retained>=95`` or ``name~joint``.
        steps_to: scores on the monitored texts, such as ``accuracy=85``; each adds the first step that reached it.
        against: the name of the row of runs that every other row of runs is tested against.
        references: files of published rows.

    Raises:
        UsageError: a filter or a target score that cannot be read.
    """

    metrics: Sequence[str] | None = None
    sort: str | None = None
    filters: Sequence[str] = ()
    steps_to: Sequence[str] = ()
    against: str | None = None
    references: Sequence[str | Path] = ()

    def __post_init__(self) -> None:
        self.conditions()
        self.targets()

    def conditions(self) -> list[Filter]:
        """The filters, parsed."""
        return [Filter.parse(text) for text in self.filters]

    def targets(self) -> list[ScoreTarget]:
        """The scores of ``steps_to``, parsed, each once."""
        return [ScoreTarget.parse(text) for text in dict.fromkeys(self.steps_to)]

    def published(self) -> list[Published]:
        """The rows of the reference files; a file that is given twice is read once.

        Raises:
            UsageError: a file that cannot be read.
        """
        files = {Path(file).resolve(): Path(file) for file in self.references}
        return [row for file in files.values() for row in read_published(file)]


def compare(
    paths: Iterable[str | Path],
    metrics: Sequence[str] | None = None,
    *,
    sort: str | None = None,
    filters: Sequence[str] = (),
    steps_to: Sequence[str] = (),
    against: str | None = None,
    references: Sequence[str | Path] = (),
) -> ComparisonTable:
    """Compare runs and evaluations in one table.

    Args:
        paths: run folders, folders of runs (one folder per task makes one row), or evaluation files and their folders.
        metrics: columns to show; this and the other keywords are fields of ``CompareOptions``.
        sort: the column to sort by.
        filters: conditions that rows must meet.
        steps_to: scores whose first step is shown.
        against: the row that the others are tested against.
        references: files of published rows.

    Raises:
        UsageError: nothing there, an unfinished run, an unknown column, or a reference file that cannot be read.
    """
    options = CompareOptions(metrics, sort, filters, steps_to, against, references)
    return build_table(discover(paths), options)


def build_table(sources: Discovery, options: CompareOptions, baselines: Sequence[BaselineRow] = ()) -> ComparisonTable:
    """Build the comparison table of runs and evaluations that were read.

    Args:
        sources: the runs and evaluations.
        options: what to show of them.
        baselines: rows that need no training.

    Raises:
        UsageError: an unknown column or row, a reference file that cannot be read, or filters that leave no row.
    """
    conditions, targets, published = options.conditions(), options.targets(), options.published()
    runs, results = join_evaluations(sources.entries, sources.evaluations)
    groups = _group_seeds(runs)
    entries = [entry for group in groups for entry in group]
    means = tasks_with_means(entries)
    steps = [column for target in targets for column in target.columns(entries)]
    columns = [*build_columns(entries, sources.evaluations, means), *steps]

    students = [student_row(group, means, targets) for group in groups]
    tests = _test(students, groups, options.against)
    evaluated = rows_of_evaluations(results, means)
    rows = [*teacher_rows(entries, means), *baseline_rows(baselines, means, columns), *tests.rows]
    rows += [row for row, _ in evaluated]
    columns = _with_scores(columns, rows)
    if options.sort is not None:
        rows = sort_rows(rows, options.sort, columns)
    references, further = reference_rows(published, columns)
    columns += further
    rows += [*tests.differences, *references]

    shown = apply_filters(rows, conditions, columns)
    columns = _with_scores(_select(columns, rows, options.metrics, steps), shown)
    entries = [entry for row, group in zip(tests.rows, groups, strict=True) if row in shown for entry in group]
    results = tuple(result for row, own in evaluated if row in shown for result in own)
    ranked = mark_best([row for row in shown if row.kind != "reference"], columns, _unranked(entries))
    ranked += mark_sources([row for row in shown if row.kind == "reference" and _has_any(row, columns)])

    notes = footnotes(entries, results, ranked, columns)
    notes += dict.fromkeys(note for baseline in baselines for note in baseline.notes)
    notes += tests.notes_on({row.name for row in ranked})
    notes += _filter_note(conditions, len(shown), len(rows))
    notes += _skipped_notes(sources.passed_over)
    protocols = scored_splits(entries, [*evaluations_of(entries), *results])
    return clean_text(ComparisonTable(tuple(columns), tuple(ranked), tuple(notes), tests.judged, protocols))


def _group_seeds(entries: Sequence[RunGroup]) -> list[list[RunGroup]]:
    """Group runs that differ by seed alone, under distinct names; a repeated seed is a row of its own."""
    groups: dict[str, list[RunGroup]] = {}
    seen: set[tuple[str, int]] = set()
    for number, entry in enumerate(entries):
        again = (entry.key, entry.seed) in seen
        seen.add((entry.key, entry.seed))
        groups.setdefault(f"{entry.key} {number}" if again else entry.key, []).append(entry)
    rows = list(groups.values())
    return disambiguate(rows, [common_name([entry.name for entry in group]) for group in rows])


def _test(students: Sequence[Row], groups: Sequence[Sequence[RunGroup]], baseline: str | None) -> BaselineTests:
    """Test the rows of runs against one of them; without one they stay as they are."""
    return BaselineTests(tuple(students)) if baseline is None else compare_against(students, groups, baseline)


def _select(
    columns: Sequence[Column], rows: Sequence[Row], metrics: Sequence[str] | None, always: Sequence[Column]
) -> list[Column]:
    """The columns that ``metrics`` name, in the table's order, and those that are always shown."""
    if metrics is None:
        return list(columns)
    wanted = [column for name in metrics for column in resolve_columns(name, columns, rows)]
    return [column for column in columns if column in wanted or column in always]


def _with_scores(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    return [column for column in columns if any(has_score(row, column) for row in rows)]


def _has_any(row: Row, columns: Sequence[Column]) -> bool:
    return any(has_score(row, column) for column in columns)


def _unranked(entries: Sequence[RunGroup]) -> set[str]:
    """Tasks and columns without a best row: data, versions, tokens, teachers or tasks differ from row to row."""
    tokens = set(find_incomparable(entries))
    mixed = {task for task, protocols in find_protocols(entries).items() if len(protocols) > 1}
    if mixed or have_different_tasks(entries):
        return mixed | tokens | set(SHARED)
    return tokens | ({"agreement", "retained"} if have_different_teachers(entries) else set())


def _filter_note(conditions: Sequence[Filter], shown: int, rows: int) -> list[str]:
    if not conditions:
        return []
    written = " and ".join(condition.written for condition in conditions)
    return [f"filter {written}: {shown} of {rows} rows; the best of these is marked"]


def _skipped_notes(skipped: Mapping[Path, str]) -> list[str]:
    """List paths that are not finished runs, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for path, reason in skipped.items():
        reasons.setdefault(reason, []).append(path.name)
    return [f"skipped: {list_names(names)} ({reason})" for reason, names in reasons.items()]
