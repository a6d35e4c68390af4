"""Gates: what must hold of a table for a build to pass, by itself or beside an earlier table.

Two kinds, both written as on the command line::

    retained>=97                 a bound on a column: >=, >, <=, < or =
    sst2/accuracy=0.5            how much worse than an earlier table's a column may be, in its unit

A name is a column's key (``sst2/accuracy``) or a metric's (``accuracy``, of every task that has it). Students and
evaluated models are gated; teachers, what needs no model, and what others have published are not.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdalign.comparison.baseline import read_baseline
from kdalign.comparison.ranking import resolve_columns
from kdalign.comparison.table import Cell, Column, ComparisonTable, Row
from kdalign.errors import UsageError
from kdalign.runs.markdown import escape

if TYPE_CHECKING:
    from rich.console import RenderableType

_REQUIREMENT = re.compile(r"\s*([^<>]+?)\s*(>=|<=|>|<|=)\s*([^<>=\s]+)\s*")
_DIGITS = 6
"""At most so many decimals, where fewer would hide on which side of its bound a value lies."""
_NONE = Cell(None, reason="the row has none")


@dataclass(frozen=True)
class Requirement:
    """A bound on a column."""

    name: str
    relation: str
    bound: float


@dataclass(frozen=True)
class MaxDrop:
    """How much worse than an earlier value a column may be, in its unit, whichever direction is worse."""

    name: str
    most: float


@dataclass(frozen=True)
class GateResult:
    """One gate on one row: what was asked, what was found, and whether it holds.

    Attributes:
        row: empty where the table has no row to look at.
        found: the value with its interval, or why there is none.
        value: None where there is none; the gate then fails.
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
        """All of it on one line."""
        row = f"{self.row}: " if self.row else ""
        return f"{'pass' if self.passed else 'FAIL'}: {row}{self.asked}; {self.found}"


def check_gates(
    now: ComparisonTable, require: Sequence[str] = (), max_drop: Sequence[str] = (), baseline: str | Path | None = None
) -> tuple[GateResult, ...]:
    """Hold a table against gates; all are looked at, whichever fail.

    Args:
        now: the table, with every column.
        require: bounds such as ``retained>=97``.
        max_drop: largest drops such as ``accuracy=0.5``, several separated by commas.
        baseline: the earlier table in JSON, or a run or evaluation that makes one.

    Raises:
        UsageError: a gate that cannot be read, an unknown column, or a baseline that is not there.
    """
    bounds = [_requirement(text) for text in require]
    drops = [_drop(part) for text in max_drop for part in text.split(",")]
    if drops and baseline is None:
        raise UsageError("--max-drop needs the earlier table: --baseline FILE")
    if baseline is not None and not drops:
        raise UsageError("--baseline is held against what --max-drop names, such as --max-drop accuracy=0.5")
    before = read_baseline(Path(baseline)) if baseline is not None else None
    verdicts: list[GateResult] = []
    measured = [column for column in now.columns if not column.published]
    for bound in bounds:
        for column in resolve_columns(bound.name, measured):
            verdicts += _required(bound, column, now)
    for drop in drops:
        for column in resolve_columns(drop.name, measured):
            assert before is not None, "drops come with a baseline"
            verdicts += _dropped(drop, column, now, before)
    return tuple(verdicts)


def append_gates(shown: "RenderableType", form: str, verdicts: Sequence[GateResult]) -> "RenderableType":
    """A rendered table with the gates in it: below it in Markdown, a part of the object in JSON; others as they are."""
    if form == "json" and verdicts:
        return json.dumps(json.loads(str(shown)) | {"gates": [asdict(verdict) for verdict in verdicts]}, indent=2)
    if form == "markdown" and verdicts:
        lines = [f"- {_bold_outcome(escape(verdict.line))}" for verdict in verdicts]
        return "\n".join([str(shown).rstrip("\n"), "", "Gates:", "", *lines])
    return shown


def _bold_outcome(line: str) -> str:
    outcome, _, rest = line.partition(":")
    return f"**{outcome}**:{rest}"


def _requirement(text: str) -> Requirement:
    found = _REQUIREMENT.fullmatch(text)
    bound = _number(found[3]) if found else None
    if found is None or bound is None:
        raise UsageError(f"--require {text!r}: give a column, one of >= > <= < = and a number, such as 'retained>=97'")
    return Requirement(found[1], found[2], bound)


def _drop(text: str) -> MaxDrop:
    name, equals, given = (part.strip() for part in text.partition("="))
    most = _number(given)
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
    """The rows that a gate looks at: students and evaluated models whose column it is, with a value or without."""
    rows = [row for row in comparison.rows if row.kind in ("student", "evaluation")]
    return [row for row in rows if column.key in row.cells or _misses(row, column)]


def _misses(row: Row, column: Column) -> bool:
    """Whether a row ought to have a column that it lacks: one of its own task, or one that every student has."""
    if not column.task:
        return row.kind == "student"
    return any(key == column.task or key.startswith(f"{column.task}/") for key in row.cells)


def _nobody(column: Column, asked: str) -> GateResult:
    return GateResult("", column.key, asked, "no student and no evaluated model has this column", passed=False)


def _required(gate: Requirement, column: Column, now: ComparisonTable) -> list[GateResult]:
    asked = f"{column.key} {gate.relation} {gate.bound:g}"
    verdicts = []
    for row in _gated(now, column):
        cell = row.cells.get(column.key, _NONE)
        held = cell.value is not None and _RELATIONS[gate.relation](cell.value, gate.bound)
        found = _shown(cell, column, gate.bound)
        verdicts.append(GateResult(row.name, column.key, asked, found, held, cell.value, cell.low, cell.high))
    return verdicts or [_nobody(column, asked)]


def _dropped(gate: MaxDrop, column: Column, now: ComparisonTable, before: ComparisonTable) -> list[GateResult]:
    asked = f"{column.key} at most {gate.most:g}{_unit(column)} worse than the baseline"
    rows, earlier = _gated(now, column), _gated(before, column)
    moved = _other_data(column, now, before)
    verdicts = []
    for row in rows:
        cell = row.cells.get(column.key, _NONE)
        alike = earlier if len(rows) == len(earlier) == 1 else [old for old in earlier if old.name == row.name]
        old = alike[0].cells.get(column.key, _NONE) if len(alike) == 1 else _NONE
        worse = None
        if cell.value is not None and old.value is not None:
            worse = old.value - cell.value if column.higher_is_better else cell.value - old.value
        if not alike:
            has = ", ".join(old.name for old in earlier) or "none with this column"
            said = f"the baseline has no row {row.name!r} (it has: {has})"
        elif len(alike) > 1:
            said = f"the baseline has {len(alike)} rows {row.name!r}"
        elif old.value is None:
            said = f"the baseline has no value{f' ({old.reason})' if old.reason else ''}"
        elif moved:
            said = moved
        else:
            said = f"before {_plain(old.value, column.digits + 1)}"
            said += f": {_change(worse)}" if worse is not None else ""
        held = worse is not None and not moved and _at_most(worse, gate.most)
        found = f"{_shown(cell, column)}, {said}"
        verdicts.append(
            GateResult(row.name, column.key, asked, found, held, cell.value, cell.low, cell.high, old.value)
        )
    return verdicts or [_nobody(column, asked)]


def _other_data(column: Column, now: ComparisonTable, before: ComparisonTable) -> str:
    """Why values do not compare: the data that the baseline was scored on, if it is other data; else nothing."""
    ours, theirs = _scored_on(now, column.task), _scored_on(before, column.task)
    same = ours <= theirs if column.task else ours == theirs  # a mean over tasks is of all of them
    if column.cost or not ours or not theirs or same:
        return ""
    return f"the baseline was scored on other data: {'; '.join(sorted(theirs - ours) or sorted(theirs))}"


def _scored_on(comparison: ComparisonTable, task: str) -> set[str]:
    """The data of a task, or of all tasks where none is named."""
    return {str(split) for split in comparison.protocols if task in ("", split.task)}


def _at_most(value: float, bound: float) -> bool:
    return value <= bound or _equal(value, bound)


def _equal(value: float, bound: float) -> bool:
    """Equal but for the rounding of floating-point numbers: 29 of 100 is 28.999999999999996 per cent."""
    return math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-9)


_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": lambda value, bound: value >= bound or _equal(value, bound),
    ">": lambda value, bound: value > bound and not _equal(value, bound),
    "<=": _at_most,
    "<": lambda value, bound: value < bound and not _equal(value, bound),
    "=": _equal,
}


def _shown(cell: Cell, column: Column, bound: float | None = None) -> str:
    """A value with its interval, exact enough to see on which side of a bound it lies; or why there is none."""
    if cell.value is None:
        return f"no value{f' ({cell.reason})' if cell.reason else ''}"
    digits = column.digits + 1
    while bound is not None and not _equal(cell.value, bound) and round(cell.value, digits) == bound:
        if digits == _DIGITS:
            break
        digits += 1
    shown = f"found {_plain(cell.value, digits)}{'*' if cell.mark else ''}"
    if cell.low is not None and cell.high is not None:
        shown += f" ({_plain(cell.low, column.digits)} to {_plain(cell.high, column.digits)})"
    return shown


def _plain(value: float, digits: int) -> str:
    if abs(value) >= 1e9:  # as a table shows it
        return f"{value:.4e}"
    return f"{value:,.{digits}f}"


def _change(worse: float) -> str:
    if _equal(worse, 0):
        return "the same"
    return f"{abs(worse):.4g} {'worse' if worse > 0 else 'better'}"


def _unit(column: Column) -> str:
    """A difference's unit: of percentages, points."""
    return " points" if column.unit == "%" else f" {column.unit}" if column.unit else ""
