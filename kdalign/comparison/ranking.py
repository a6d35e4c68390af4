"""Column names resolved; rows sorted, filtered and marked best."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kdalign.comparison.table import PROFILED, Cell, Column, Row, metric_key
from kdalign.errors import UsageError, unknown


def resolve_columns(name: str, columns: Sequence[Column], rows: Sequence[Row] = ()) -> list[Column]:
    """Find the columns of a name: a column's key, or a metric of every task that has it.

    Args:
        name: the name.
        columns: columns of the table.
        rows: rows of the table, which tell why a column is not there.

    Raises:
        UsageError: there are none.
    """
    exact = [column for column in columns if name == column.key]
    resolved = exact or [
        column
        for column in columns
        if (column.task or column.published) and column.key == metric_key(column.task, name, column.published)
    ]
    if not resolved:
        students = [row for row in rows if row.kind == "student"]
        if name in PROFILED and any(_is_unmeasured(row, name) for row in students):
            raise UsageError(f"no run has a value in column {name!r}: they were made with --no-profile")
        raise unknown("column", name, [column.key for column in columns])
    return resolved


def _is_unmeasured(student: Row, name: str) -> bool:
    """Return whether a column lacks a run's value since its models were not profiled; a speed-up has a teacher, too."""
    return "latency" not in student.cells and (name != "speed-up" or "retained" in student.cells)


def sort_rows(rows: Sequence[Row], name: str, columns: Sequence[Column]) -> list[Row]:
    """Sort rows by a column, best first; rows without a value come last.

    Raises:
        UsageError: no such column, or several.
    """
    by = resolve_columns(name, columns, rows)
    if len(by) > 1:
        raise UsageError(f"--sort {name!r}: which one? (accepted: {', '.join(column.key for column in by)})")
    return sorted(rows, key=lambda row: _sort_key(row.cells.get(by[0].key), by[0]))


def _sort_key(cell: Cell | None, column: Column) -> float:
    if cell is None or cell.value is None:
        return float("inf")
    return -cell.value if column.higher_is_better else cell.value


_FORM = re.compile(r"\s*(?:(name)\s*(~)|(.*[^<>=~\s])\s*(>=|<=|>|<|=|~))\s*(.*?)\s*")  # a key may hold a sign
_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Filter:
    """A condition on rows, such as ``retained>=95`` or ``name~joint``.

    Attributes:
        written: the condition as the user wrote it.
        name: a column's key, a metric, or ``name``.
        sign: ``>=``, ``<=``, ``>``, ``<``, ``=`` (equal as shown) or ``~`` (contains the text, case-insensitively).
        text: the number or text on the right-hand side.
    """

    written: str
    name: str
    sign: str
    text: str

    @classmethod
    def parse(cls, written: str) -> "Filter":
        """Parse a condition.

        Raises:
            UsageError: it is not one.
        """
        match = _FORM.fullmatch(written)
        if not match:
            raise UsageError(f"--filter {written!r}: {_ACCEPTED}")
        name, sign = match[1] or match[3], match[2] or match[4]
        condition = cls(written.strip(), name, sign, match[5])
        if (name == "name") != (sign == "~") or not condition.text:
            raise UsageError(f"--filter {written!r}: {_ACCEPTED}")
        if sign != "~":
            _number(condition)
        return condition

    def passes(self, row: Row, columns: Sequence[Column]) -> bool:
        """Return whether the condition holds for all of a row's columns of this name, and for at least one.

        Raises:
            UsageError: no such column.
        """
        if self.sign == "~":
            return self.text.casefold() in row.name.casefold()
        values = [
            (row.cells[column.key].value, column.digits)
            for column in resolve_columns(self.name, columns)
            if column.key in row.cells
        ]
        return bool(values) and all(value is not None and self._holds(value, digits) for value, digits in values)

    def _holds(self, value: float, digits: int) -> bool:
        wanted = _number(self)
        if self.sign == "=":
            return round(value, digits) == round(wanted, digits)
        return _HOLDS[self.sign](value, wanted)


_ACCEPTED = "accepted are conditions such as retained>=95 (>=, <=, >, <, =) and name~TEXT"


def _number(condition: Filter) -> float:
    try:
        value = float(condition.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--filter {condition.written!r}: {condition.text!r} is not a number; {_ACCEPTED}")
    return value


def apply_filters(rows: Sequence[Row], filters: Sequence[Filter], columns: Sequence[Column]) -> list[Row]:
    """Keep the rows for which all conditions hold.

    Raises:
        UsageError: an unknown column, or no row is left.
    """
    left = list(rows)
    for condition in filters:
        if condition.sign != "~":
            resolve_columns(condition.name, columns, rows)
        passing = [row for row in left if condition.passes(row, columns)]
        if not passing:
            choices = _choices(condition, left, columns)
            raise UsageError(f"--filter {condition.written!r} leaves no row of {len(left)}{choices}")
        left = passing
    return left


def _choices(condition: Filter, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A clause with the names or the range of values that rows have."""
    if condition.sign == "~":
        return f" (they are called {', '.join(row.name for row in rows)})"
    keys = [column.key for column in resolve_columns(condition.name, columns)]
    values = [row.cells[key].value for row in rows for key in keys if key in row.cells]
    known = [value for value in values if value is not None]
    return f" (values from {min(known):g} to {max(known):g})" if known else " (none has a value)"


def mark_best(rows: Sequence[Row], columns: Sequence[Column], unranked: set[str]) -> list[Row]:
    """Mark the best and the second-best students of each score, ties included.

    Args:
        rows: rows of the table.
        columns: columns of the table; costs are not ranked.
        unranked: tasks and columns whose rows do not rank.
    """
    marked = {id(row): dict(row.cells) for row in rows}
    students = [row for row in rows if row.kind == "student"]
    for column in columns:
        if column.cost or unranked & {column.task or column.key, column.key}:
            continue
        values = [_sort_key(row.cells.get(column.key), column) for row in students]
        ranks = sorted({round(value, 6) for value in values if value < float("inf")})
        if sum(value < float("inf") for value in values) < 2:
            continue
        for row, value in zip(students, values, strict=True):
            if round(value, 6) in ranks[:2]:
                first = round(value, 6) == ranks[0]
                marked[id(row)][column.key] = replace(row.cells[column.key], best=first, second=not first)
    return [replace(row, cells=marked[id(row)]) for row in rows]
