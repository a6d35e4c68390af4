"""Rows held against one of them: a mark behind each number, and a row of differences for each arm."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdalign.comparison.table import ALIKE, BETTER, WORSE, Cell, Row
from kdalign.comparison.verdicts import Arm, ArmRuns, ArmVerdict, compare_arms
from kdalign.errors import UsageError, unknown
from kdalign.runs.discovery import RunGroup
from kdalign.runs.folder import RunFolder

_MARKS = {"better": BETTER, "worse": WORSE, "no evidence": ALIKE}
KIND = "difference"


@dataclass(frozen=True)
class BaselineTests:
    """What paired tests add to a table.

    Attributes:
        rows: the rows of runs, with marks.
        differences: a row for each arm: how much better it is than the row that all are held against.
        notes: each with the names of the rows that it is about; with none where it is about all.
        judged: the verdicts in full, as plain dictionaries.
    """

    rows: tuple[Row, ...]
    differences: tuple[Row, ...] = ()
    notes: tuple[tuple[frozenset[str], str], ...] = ()
    judged: tuple[dict[str, Any], ...] = ()

    def notes_on(self, names: Collection[str]) -> list[str]:
        """What is said under a table of these rows alone."""
        return [note for about, note in self.notes if not about or not about.isdisjoint(names)]


def compare_against(rows: Sequence[Row], groups: Sequence[Sequence[RunGroup]], name: str) -> BaselineTests:
    """Test every row of runs against one of them, by the answers that the runs keep.

    Args:
        rows: of runs.
        groups: the runs of each row, one for each seed.
        name: of the row that all are held against.

    Raises:
        UsageError: no such row, two of one name, or runs that cannot be paired.
    """
    names = [row.name for row in rows]
    if name not in names:
        raise unknown("row to hold others against", name, names)
    double = [each for each in names if names.count(each) > 1]
    if double:
        raise UsageError(
            f"two rows are called {double[0]!r}, so that nothing can be held against: rename their folders"
        )
    runs = dict(zip(names, groups, strict=True))
    found = compare_arms({row: _arm(group) for row, group in runs.items()}, name)
    cells: dict[str, dict[str, Cell]] = {row: {} for row in names}
    for one in found.verdicts:
        single = len({task for entry in runs[one.arm] for task in entry.records}) == 1
        key = one.metric if single and one.metric == "agreement" else one.key  # as the table calls it
        verdict = one.verdict
        cells[one.arm][key] = Cell(verdict.difference, verdict.low, verdict.high, verdict=_MARKS[verdict.word])
    return BaselineTests(
        tuple(_marked(row, cells[row.name]) for row in rows),
        tuple(
            Row(f"{row.name} − {name}", KIND, _seeds_of(found.verdicts, row.name), cells[row.name])
            for row in rows
            if cells[row.name]
        ),
        _notes(found.verdicts, name, found.notes),
        tuple(one.to_json() for one in found.verdicts),
    )


def _marked(row: Row, differences: Mapping[str, Cell]) -> Row:
    verdicts = {key: differences[key].verdict for key in row.cells if key in differences}
    return replace(row, cells=row.cells | {key: replace(row.cells[key], verdict=v) for key, v in verdicts.items()})


def _seeds_of(verdicts: Sequence[ArmVerdict], arm: str) -> tuple[int, ...]:
    """The seeds of an arm that its differences are of."""
    return tuple(sorted({seed for one in verdicts if one.arm == arm for seed in one.seeds}))


def _arm(group: Sequence[RunGroup]) -> Arm:
    return {
        (task, entry.seed): ArmRuns(record, RunFolder(entry.folders[task]), entry.answers.get(task))
        for entry in group
        for task, record in entry.records.items()
    }


def _apart(one: ArmVerdict) -> bool:
    """Whether a difference is none by its test and one by its interval, or the other way round."""
    low, high = one.verdict.low, one.verdict.high
    return low is not None and high is not None and (low > 0 or high < 0) != (one.verdict.word != "no evidence")


def _notes(verdicts: Sequence[ArmVerdict], name: str, more: Sequence[str]) -> tuple[tuple[frozenset[str], str], ...]:
    tests = ", ".join(dict.fromkeys(one.verdict.test for one in verdicts))
    several = len({one.arm for one in verdicts}) > 1
    corrected = ", corrected for the number of rows (Holm)" if several else ""
    own = ", each its own, not corrected" if several else ""
    whole = [one for one in verdicts if one.key == "macro"] or [one for one in verdicts if one.primary]
    how = (
        []
        if not verdicts
        else [
            f"{BETTER} better than {name}, {WORSE} worse, {ALIKE} no evidence of either at 5 %{corrected}; paired by "
            f"example and seed ({tests})",
            f"− {name}: how much better, whatever a metric's direction, with its 95 % interval{own}",
        ]
    )
    if any(_apart(one) for one in verdicts):
        how.append(
            f"where mark and interval seem to disagree: the mark is by the test's p{corrected}; the interval is not, "
            f"and may be made otherwise (docs/reference/statistics.md)"
        )
    each = [
        (
            frozenset({one.arm, f"{one.arm} − {name}"}),
            f"{one.arm} − {name}, {one.key}: p = {one.verdict.p_holm:.2g}; such data show a difference of "
            f"{one.verdict.detectable:.1f} in 80 % of cases",
        )
        for one in whole
        if one.verdict.detectable is not None
    ]
    return (*((frozenset(), note) for note in how), *each, *((frozenset(), note) for note in more))
