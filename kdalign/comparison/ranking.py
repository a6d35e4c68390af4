"""Which columns a name stands for, which rows are left, in which order they stand, and which is best."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kdalign.comparison.table import Cell, Column, Row, metric_key
from kdalign.errors import UsageError, unknown


def resolve_columns(name: str, columns: Sequence[Column]) -> list[Column]:
    """The columns that a name stands for: a key, or a metric of every task that has it.

    Raises:
        UsageError: none.
    """
    found = [column for column in columns if name == column.key]
    found = found or [
        column
        for column in columns
        if (column.task or column.published) and column.key == metric_key(column.task, name, column.published)
    ]
    if not found:
        raise unknown("column", name, [column.key for column in columns])
    return found


def sort_rows(rows: Sequence[Row], name: str, columns: Sequence[Column]) -> list[Row]:
    """Rows sorted by a column; those without a value come last.

    Raises:
        UsageError: no such column, or several.
    """
    by = resolve_columns(name, columns)
    if len(by) > 1:
        raise UsageError(f"--sort {name!r}: which one? (accepted: {', '.join(column.key for column in by)})")
    return sorted(rows, key=lambda row: _rank(row.cells.get(by[0].key), by[0]))


def _rank(cell: Cell | None, column: Column) -> float:
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
        written: as it was given.
        name: a column's key, a metric, or ``name``.
        sign: ``>=``, ``<=``, ``>``, ``<``, ``=`` (as both numbers are shown) or ``~`` (holds the text, in any case).
    """

    written: str
    name: str
    sign: str
    text: str

    @classmethod
    def parse(cls, written: str) -> "Filter":
        """Read a condition.

        Raises:
            UsageError: it is none.
        """
        found = _FORM.fullmatch(written)
        if not found:
            raise UsageError(f"--filter {written!r}: {_ACCEPTED}")
        name, sign = found[1] or found[3], found[2] or found[4]
        made = cls(written.strip(), name, sign, found[5])
        if (made.name == "name") != (made.sign == "~") or not made.text:
            raise UsageError(f"--filter {written!r}: {_ACCEPTED}")
        if made.sign != "~":
            _number(made)
        return made

    def passes(self, row: Row, columns: Sequence[Column]) -> bool:
        """Whether it holds for a row: for every one of its columns that the name stands for, and for one at least.

        Raises:
            UsageError: no such column.
        """
        if self.sign == "~":
            return self.text.casefold() in row.name.casefold()
        ours = [
            (row.cells[column.key].value, column)
            for column in resolve_columns(self.name, columns)
            if column.key in row.cells
        ]
        return bool(ours) and all(value is not None and self._holds(value, column.digits) for value, column in ours)

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
        raise UsageError(f"--filter {condition.written!r}: {condition.text!r} is no number; {_ACCEPTED}")
    return value


def apply_filters(rows: Sequence[Row], filters: Sequence[Filter], columns: Sequence[Column]) -> list[Row]:
    """The rows for which all conditions hold.

    Raises:
        UsageError: an unknown column, or no row is left.
    """
    left = list(rows)
    for each in filters:
        passing = [row for row in left if each.passes(row, columns)]
        if not passing:
            raise UsageError(f"--filter {each.written!r} leaves no row of {len(left)}{_values(each, left, columns)}")
        left = passing
    return left


def _values(condition: Filter, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """What there is to choose from."""
    if condition.sign == "~":
        return f" (they are called {', '.join(row.name for row in rows)})"
    keys = [column.key for column in resolve_columns(condition.name, columns)]
    values = [row.cells[key].value for row in rows for key in keys if key in row.cells]
    known = [value for value in values if value is not None]
    return f" (values from {min(known):g} to {max(known):g})" if known else " (none has a value)"


def mark_best(rows: Sequence[Row], columns: Sequence[Column], unranked: set[str]) -> list[Row]:
    """Mark the best and the second best student of each score, equal ones all.

    Args:
        rows: of the table.
        columns: of the table; what a model costs ranks nothing.
        unranked: tasks and columns in which rows do not rank, and none is best.
    """
    marked = {id(row): dict(row.cells) for row in rows}
    students = [row for row in rows if row.kind == "student"]
    for column in columns:
        if column.cost or unranked & {column.task or column.key, column.key}:
            continue
        values = [_rank(row.cells.get(column.key), column) for row in students]
        places = sorted({round(value, 6) for value in values if value < float("inf")})
        if sum(value < float("inf") for value in values) < 2:
            continue
        for row, value in zip(students, values, strict=True):
            if round(value, 6) in places[:2]:
                first = round(value, 6) == places[0]
                marked[id(row)][column.key] = replace(row.cells[column.key], best=first, second=not first)
    return [replace(row, cells=marked[id(row)]) for row in rows]
