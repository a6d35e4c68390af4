"""Gates: conditions on a table, by itself or compared with an earlier one, that must hold for a build to pass.

Two kinds, both written as on the command line::

    retained>=97                 a bound on a column: >=, >, <=, < or =
    sst2/accuracy=0.5            the largest drop from an earlier table's value, in the column's unit

A name is a column's key (``sst2/accuracy``) or a metric's (``accuracy``, of every task that has it). Students and
evaluated models are gated; teachers, baselines and published rows are not.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdalign.comparison.gate_baseline import read_baseline
from kdalign.comparison.ranking import resolve_columns
from kdalign.comparison.table import Cell, Column, ComparisonTable, Row
from kdalign.errors import UsageError

_REQUIREMENT = re.compile(r"\s*([^<>]+?)\s*(>=|<=|>|<|=)\s*([^<>=\s]+)\s*")
_DIGITS = 6
"""Maximum decimals used to show on which side of its bound a value is."""
_ABSENT = Cell(None, reason="the row has none")


@dataclass(frozen=True)
class Requirement:
    """A bound on a column."""

    name: str
    relation: str
    bound: float


@dataclass(frozen=True)
class MaxDrop:
    """Largest accepted drop of a column from an earlier value, in its unit, whichever direction is worse."""

    name: str
    most: float


@dataclass(frozen=True)
class GateResult:
    """Result of one gate on one row.

    Attributes:
        row: name of the row; empty if the table has no row to check.
        asked: the condition in words.
        found: the value with its interval, or why there is none.
        passed: true if the condition holds.
        value: the value; None if there is none, and the gate then fails.
        baseline: the earlier value; None for a bound.
    """

    row: str
    column: str
    asked: str
    found: str
    passed: bool
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None

    @property
    def line(self) -> str:
        """The result on one line."""
        row = f"{self.row}: " if self.row else ""
        return f"{'pass' if self.passed else 'FAIL'}: {row}{self.asked}; {self.found}"


def check_gates(
    now: ComparisonTable, require: Sequence[str] = (), max_drop: Sequence[str] = (), baseline: str | Path | None = None
) -> tuple[GateResult, ...]:
    """Check every gate on a table, whichever fail.

    Args:
        now: the table, with all its columns.
        require: bounds such as ``retained>=97``.
        max_drop: largest drops such as ``accuracy=0.5``, several separated by commas.
        baseline: the earlier table in JSON, or a run or an evaluation.

    Raises:
        UsageError: a gate that cannot be parsed, an unknown column, or a missing baseline.
    """
    bounds = [_parse_requirement(text) for text in require]
    drops = [_parse_drop(part) for text in max_drop for part in text.split(",")]
    if drops and baseline is None:
        raise UsageError("--max-drop needs the earlier table: --baseline FILE")
    if baseline is not None and not drops:
        raise UsageError("--baseline is compared in the columns of --max-drop, such as --max-drop accuracy=0.5")
    before = read_baseline(Path(baseline)) if baseline is not None else None
    verdicts: list[GateResult] = []
    measured = [column for column in now.columns if not column.published]
    for bound in bounds:
        for column in resolve_columns(bound.name, measured, now.rows):
            verdicts += _check_bound(bound, column, now)
    for drop in drops:
        for column in resolve_columns(drop.name, measured, now.rows):
            assert before is not None, "drops come with a baseline"
            verdicts += _check_drop(drop, column, now, before)
    return tuple(verdicts)


def _parse_requirement(text: str) -> Requirement:
    match = _REQUIREMENT.fullmatch(text)
    bound = _number(match[3]) if match else None
    if match is None or bound is None:
        raise UsageError(f"--require {text!r}: give a column, one of >= > <= < = and a number, such as 'retained>=97'")
    return Requirement(match[1], match[2], bound)


def _parse_drop(text: str) -> MaxDrop:
    name, equals, drop = (part.strip() for part in text.partition("="))
    most = _number(drop)
    if not name or not equals or most is None or most < 0:
        raise UsageError(
            f"--max-drop {text.strip()!r}: give a column and the largest drop in its unit, 0 or more, "
            f"such as accuracy=0.5"
        )
    return MaxDrop(name, most)


def _number(text: str) -> float | None:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _gated(comparison: ComparisonTable, column: Column) -> list[Row]:
    """The rows that a gate checks: students and evaluated models that have the column or should have it."""
    rows = [row for row in comparison.rows if row.kind in ("student", "evaluation")]
    return [row for row in rows if column.key in row.cells or _should_have(row, column)]


def _should_have(row: Row, column: Column) -> bool:
    """True for a column of the row's own task, and for one that every student has."""
    if not column.task:
        return row.kind == "student"
    return any(key == column.task or key.startswith(f"{column.task}/") for key in row.cells)


def _no_rows(column: Column, asked: str) -> GateResult:
    return GateResult("", column.key, asked, "no student and no evaluated model has this column", passed=False)


def _check_bound(gate: Requirement, column: Column, now: ComparisonTable) -> list[GateResult]:
    asked = f"{column.key} {gate.relation} {gate.bound:g}"
    verdicts = []
    for row in _gated(now, column):
        cell = row.cells.get(column.key, _ABSENT)
        passed = cell.value is not None and _RELATIONS[gate.relation](cell.value, gate.bound)
        found = _format_cell(cell, column, gate.bound)
        verdicts.append(GateResult(row.name, column.key, asked, found, passed, cell.value, cell.low, cell.high))
    return verdicts or [_no_rows(column, asked)]


def _check_drop(gate: MaxDrop, column: Column, now: ComparisonTable, before: ComparisonTable) -> list[GateResult]:
    asked = f"{column.key} at most {gate.most:g}{_unit(column)} worse than the baseline"
    rows, earlier = _gated(now, column), _gated(before, column)
    other_data = _other_data(column, now, before)
    verdicts = []
    for row in rows:
        cell = row.cells.get(column.key, _ABSENT)
        matching = earlier if len(rows) == len(earlier) == 1 else [old for old in earlier if old.name == row.name]
        old = matching[0].cells.get(column.key, _ABSENT) if len(matching) == 1 else _ABSENT
        worse = None
        if cell.value is not None and old.value is not None:
            worse = old.value - cell.value if column.higher_is_better else cell.value - old.value
        if len(matching) != 1:
            change = _no_match(row, matching, earlier)
        elif old.value is None:
            change = f"the baseline has no value{f' ({old.reason})' if old.reason else ''}"
        else:
            change = other_data or f"before {_format_change(old.value, worse, column)}"
        passed = worse is not None and not other_data and _at_most(worse, gate.most)
        found = f"{_format_cell(cell, column)}, {change}"
        verdicts.append(
            GateResult(row.name, column.key, asked, found, passed, cell.value, cell.low, cell.high, old.value)
        )
    return verdicts or [_no_rows(column, asked)]


def _no_match(row: Row, matching: Sequence[Row], earlier: Sequence[Row]) -> str:
    """Why a row has no counterpart in the baseline."""
    if matching:
        return f"the baseline has {len(matching)} rows {row.name!r}"
    names = ", ".join(old.name for old in earlier) or "none with this column"
    return f"the baseline has no row {row.name!r} (it has: {names})"


def _other_data(column: Column, now: ComparisonTable, before: ComparisonTable) -> str:
    """Why values do not compare: the data that the baseline was scored on, if it is other data; else nothing."""
    ours, theirs = _scored_on(now, column.task), _scored_on(before, column.task)
    same = ours <= theirs if column.task else ours == theirs  # a mean over tasks is of all of them
    if column.cost or not ours or not theirs or same:
        return ""
    return f"the baseline was scored on other data: {'; '.join(sorted(theirs - ours) or sorted(theirs))}"


def _scored_on(comparison: ComparisonTable, task: str) -> set[str]:
    """The data of a task, or of all tasks if none is named."""
    return {str(split) for split in comparison.protocols if task in ("", split.task)}


def _at_most(value: float, bound: float) -> bool:
    return value <= bound or _equal(value, bound)


def _equal(value: float, bound: float) -> bool:
    """Equal up to floating-point rounding: 29 of 100 is 28.999999999999996 per cent."""
    return math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-9)


_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": lambda value, bound: value >= bound or _equal(value, bound),
    ">": lambda value, bound: value > bound and not _equal(value, bound),
    "<=": _at_most,
    "<": lambda value, bound: value < bound and not _equal(value, bound),
    "=": _equal,
}


def _format_cell(cell: Cell, column: Column, bound: float | None = None) -> str:
    """A value with its interval, with enough decimals to tell it from a bound; or why there is none."""
    if cell.value is None:
        return f"no value{f' ({cell.reason})' if cell.reason else ''}"
    digits = column.digits + 1
    while bound is not None and not _equal(cell.value, bound) and round(cell.value, digits) == bound:
        if digits == _DIGITS:
            break
        digits += 1
    text = f"found {_format(cell.value, digits)}{'*' if cell.mark else ''}"
    if cell.low is not None and cell.high is not None:
        text += f" ({_format(cell.low, column.digits)} to {_format(cell.high, column.digits)})"
    return text


def _format(value: float, digits: int) -> str:
    if abs(value) >= 1e9:  # as a table shows it
        return f"{value:.4e}"
    return f"{value:,.{digits}f}"


def _format_change(before: float, worse: float | None, column: Column) -> str:
    """An earlier value and, if there is a value now, the change."""
    value = _format(before, column.digits + 1)
    if worse is None:
        return value
    if _equal(worse, 0):
        return f"{value}: the same"
    return f"{value}: {abs(worse):.4g} {'worse' if worse > 0 else 'better'}"


def _unit(column: Column) -> str:
    """The unit of a difference: points for percentages."""
    return " points" if column.unit == "%" else f" {column.unit}" if column.unit else ""
