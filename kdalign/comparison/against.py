"""Rows tested against one of them: a mark behind each number, and a row of differences for each arm."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdalign.comparison.arm_run import ArmRun
from kdalign.comparison.evaluated_runs import text_scores
from kdalign.comparison.table import ALIKE, BETTER, WORSE, Cell, Row
from kdalign.comparison.verdicts import Arm, ArmVerdict, compare_arms
from kdalign.errors import UsageError, unknown
from kdalign.runs.discovery import RunGroup
from kdalign.runs.folder import RunFolder

_MARKS = {"better": BETTER, "worse": WORSE, "no evidence": ALIKE}
KIND = "difference"


@dataclass(frozen=True)
class AboutRows:
    """A footnote with the names of the rows that it is about; empty if it is about all."""

    rows: frozenset[str]
    note: str


@dataclass(frozen=True)
class BaselineTests:
    """Marks, rows and footnotes that paired tests add to a table.

    Attributes:
        rows: the rows of runs, with marks.
        differences: a row for each arm: how much better it is than the baseline row.
        notes: footnotes on the tests.
        judged: the verdicts in full, as plain dictionaries.
    """

    rows: tuple[Row, ...]
    differences: tuple[Row, ...] = ()
    notes: tuple[AboutRows, ...] = ()
    judged: tuple[dict[str, Any], ...] = ()

    def notes_on(self, names: Collection[str]) -> list[str]:
        """The footnotes of a table that shows only these rows."""
        return [about.note for about in self.notes if not about.rows or not about.rows.isdisjoint(names)]


def compare_against(rows: Sequence[Row], groups: Sequence[Sequence[RunGroup]], name: str) -> BaselineTests:
    """Test every row of runs against one of them, on the predictions that the runs keep.

    Args:
        rows: rows of runs.
        groups: the runs of each row, one for each seed.
        name: name of the baseline row, or of one of its runs.

    Raises:
        UsageError: no such row, two rows of one name, or runs that cannot be paired.
    """
    names = [row.name for row in rows]
    if name not in names:
        having = [row for row, group in zip(names, groups, strict=True) if name in [entry.name for entry in group]]
        name = having[0] if len(having) == 1 else name
    if name not in names:
        raise unknown("row to test others against", name, names)
    repeated = [other for other in names if names.count(other) > 1]
    if repeated:
        raise UsageError(
            f"two rows are called {repeated[0]!r}, so none of them can be the baseline: rename their folders"
        )
    runs = dict(zip(names, groups, strict=True))
    tests = compare_arms({row: _arm(group) for row, group in runs.items()}, name)
    cells: dict[str, dict[str, Cell]] = {row: {} for row in names}
    for verdict in tests.verdicts:
        single_task = len({task for entry in runs[verdict.arm] for task in entry.records}) == 1
        key = verdict.metric if single_task and verdict.metric == "agreement" else verdict.key  # the column's key
        result = verdict.verdict
        cells[verdict.arm][key] = Cell(result.difference, result.low, result.high, verdict=_MARKS[result.word])
    return BaselineTests(
        tuple(_mark(row, cells[row.name]) for row in rows),
        tuple(
            Row(f"{row.name} − {name}", KIND, _seeds_of(tests.verdicts, row.name), cells[row.name])
            for row in rows
            if cells[row.name]
        ),
        (
            *(AboutRows(frozenset(), note) for note in _method_notes(tests.verdicts, name)),
            *_power_notes(tests.verdicts, name),
            *(AboutRows(frozenset(), note) for note in tests.notes),
        ),
        tuple(verdict.to_json() for verdict in tests.verdicts),
    )


def _arm(group: Sequence[RunGroup]) -> Arm:
    return {
        (task, entry.seed): ArmRun(
            record, RunFolder(entry.folders[task]), entry.answers.get(task), text_scores(entry, task)
        )
        for entry in group
        for task, record in entry.records.items()
    }


def _mark(row: Row, differences: Mapping[str, Cell]) -> Row:
    """The row with the verdicts of its differences behind its numbers."""
    verdicts = {key: differences[key].verdict for key in row.cells if key in differences}
    return replace(row, cells=row.cells | {key: replace(row.cells[key], verdict=v) for key, v in verdicts.items()})


def _seeds_of(verdicts: Sequence[ArmVerdict], arm: str) -> tuple[int, ...]:
    """The seeds that an arm's differences are computed over."""
    return tuple(sorted({seed for verdict in verdicts if verdict.arm == arm for seed in verdict.seeds}))


def _method_notes(verdicts: Sequence[ArmVerdict], name: str) -> list[str]:
    """Footnotes on the tests, the marks and the intervals."""
    if not verdicts:
        return []
    tests = ", ".join(dict.fromkeys(verdict.verdict.test for verdict in verdicts))
    several = len({verdict.arm for verdict in verdicts}) > 1
    corrected = ", corrected for the number of rows (Holm)" if several else ""
    own = ", not corrected for their number" if several else ""
    notes = [
        f"{BETTER} better than {name}, {WORSE} worse, {ALIKE} no evidence of either at 5 %{corrected}; paired by "
        f"example and seed ({tests})",
        f"− {name}: improvement over {name}, whatever the metric's direction, with its 95 % interval{own}",
    ]
    if any(map(_seems_contradictory, verdicts)):
        notes.append(
            f"where mark and interval seem to disagree: the mark follows the test's p{corrected}; the interval does "
            f"not, and may come from another method (docs/reference/statistics.md)"
        )
    return notes


def _seems_contradictory(verdict: ArmVerdict) -> bool:
    """True if a difference is significant by its test but not by its interval, or the other way round."""
    low, high = verdict.verdict.low, verdict.verdict.high
    return low is not None and high is not None and (low > 0 or high < 0) != (verdict.verdict.word != "no evidence")


def _power_notes(verdicts: Sequence[ArmVerdict], name: str) -> list[AboutRows]:
    """P and the smallest detectable difference of each arm: of its macro mean, or of its tasks' first metrics."""
    summaries = [verdict for verdict in verdicts if verdict.key == "macro"]
    summaries = summaries or [verdict for verdict in verdicts if verdict.primary]
    return [
        AboutRows(
            frozenset({verdict.arm, f"{verdict.arm} − {name}"}),
            f"{verdict.arm} − {name}, {verdict.key}: p = {verdict.verdict.p_holm:.2g}; with this much data, a "
            f"difference of {verdict.verdict.detectable:.1f} would be detected in 80 % of cases",
        )
        for verdict in summaries
        if verdict.verdict.detectable is not None
    ]
