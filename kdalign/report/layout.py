"""Layout of a comparison: tables, headings and cells as text, for terminal, Markdown, LaTeX and HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdalign.comparison.table import Cell, Column, ComparisonTable, Row

DASH = "–"
WORD = 12
"""Width in characters at which a heading is broken between words."""


@dataclass(frozen=True)
class HeadingText:
    """Heading of a column or a row.

    Attributes:
        group: heading that neighbours share, such as a metric's task.
        unit: unit of the values; empty if they have none.
        quiet: true for rows that are shown dimmed: teachers, baselines, differences, published rows.
        apart: true for published rows, which are shown below a rule.
        mean: the group that this column is the mean of; empty for other columns.
    """

    text: str
    group: str = ""
    unit: str = ""
    quiet: bool = False
    apart: bool = False
    mean: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self.lines))

    @property
    def lines(self) -> tuple[str, str, str]:
        """Group, text and unit; each may be empty."""
        return self.group, self.text, f"({self.unit})" if self.unit else ""


@dataclass(frozen=True)
class CellText:
    """A cell as text: its number, the marks behind it, and its interval.

    Attributes:
        value: the number itself, to sort by; None for a dash.
        reason: why there is no number.
    """

    number: str
    mark: str = ""
    verdict: str = ""
    interval: str = ""
    best: bool = False
    second: bool = False
    value: float | None = None
    reason: str = ""

    @property
    def tail(self) -> str:
        """The marks behind the number."""
        return self.mark + self.verdict


@dataclass(frozen=True)
class TableLayout:
    """A table as text.

    Attributes:
        corner: heading of the row headings: ``model``, or ``metric`` if transposed.
        cells: cells, row by row.
    """

    title: str
    corner: str
    columns: tuple[HeadingText, ...]
    rows: tuple[HeadingText, ...]
    cells: tuple[tuple[CellText, ...], ...]

    @property
    def lines(self) -> list[tuple[HeadingText, tuple[CellText, ...]]]:
        """Each row's heading with its cells."""
        return list(zip(self.rows, self.cells, strict=True))

    def transposed(self) -> "TableLayout":
        """Swap rows and columns."""
        corner = "metric" if self.corner == "model" else "model"
        return TableLayout(self.title, corner, self.rows, self.columns, tuple(zip(*self.cells, strict=True)))

    def only(self, columns: Sequence[int], title: str | None = None) -> "TableLayout":
        """Keep some of the columns, under a new title if one is given."""
        return replace(
            self,
            title=self.title if title is None else title,
            columns=tuple(self.columns[number] for number in columns),
            cells=tuple(tuple(row[number] for number in columns) for row in self.cells),
        )

    def without_intervals(self) -> "TableLayout":
        """Drop the intervals."""
        return replace(self, cells=tuple(tuple(replace(cell, interval="") for cell in row) for row in self.cells))


def table_layouts(comparison: ComparisonTable, transpose: bool = False) -> list[TableLayout]:
    """Lay out a comparison as separate tables of scores, published scores, costs and training."""
    grids = [_grid(title, columns, rows) for title, columns, rows in _tables(comparison)]
    return [grid.transposed() for grid in grids] if transpose else grids


def _tables(comparison: ComparisonTable) -> list[tuple[str, list[Column], list[Row]]]:
    """Titles, columns and rows of the tables; scores are split by task unless a row has several tasks.

    Published rows are in every table of measured scores that has a column of theirs. Scores that were only published
    have a table of their own: among measured ones they would be dashes, and take width from the intervals.
    """
    scores = [column for column in comparison.columns if not column.cost and not column.published]
    tasks = list(dict.fromkeys(column.task for column in scores if column.task))
    measured = [row for row in comparison.rows if row.kind != "reference"]
    references = [row for row in comparison.rows if row.kind == "reference"]
    tasks_by_row = [{column.task for column in scores if column.task and column.key in row.cells} for row in measured]
    tables = [("Scores", scores, measured)]
    if len(tasks) > 1 and all(len(own) < 2 for own in tasks_by_row):
        rows = list(zip(measured, tasks_by_row, strict=True))
        tables = [(f"Scores: {task}", scores, [row for row, own in rows if own == {task}]) for task in tasks]
        tables.append(("Scores", scores, [row for row, own in rows if not own]))
    tables.append(("Published, not measured here", [c for c in comparison.columns if c.published], references))
    for title, training in (("Costs", False), ("Training", True)):
        costs = [column for column in comparison.columns if column.cost and column.training is training]
        tables.append((title, costs, [row for row in measured if row.has_costs(training)]))
    filled = [(title, [c for c in columns if _with(rows, [c])], rows) for title, columns, rows in tables]
    return [
        (title, columns, _with(rows, columns) if rows is references else [*rows, *_with(references, columns)])
        for title, columns, rows in filled
        if columns
    ]


def _with(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """The rows with a cell in one of the columns."""
    return [row for row in rows if any(column.key in row.cells for column in columns)]


def _grid(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> TableLayout:
    return TableLayout(
        title,
        "model",
        tuple(map(_column_heading, columns)),
        tuple(HeadingText(row_label(row), quiet=row.kind in _QUIET, apart=row.kind == "reference") for row in rows),
        tuple(tuple(_cell_text(row.cells.get(column.key), column) for column in columns) for row in rows),
    )


_QUIET = ("teacher", "difference", "baseline", "reference")


def _column_heading(column: Column) -> HeadingText:
    head = f"{column.task} "
    grouped = bool(column.task) and column.title.startswith(head)
    return HeadingText(
        column.title.removeprefix(head) if grouped else column.title,
        group=column.task if grouped else "",
        unit=column.unit,
        mean=column.task if column.key == column.task else "",
    )


def row_label(row: Row) -> str:
    """Label a row by its name and, for a mean, the number of seeds."""
    return f"{row.name} ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else row.name + row.mark


def _cell_text(cell: Cell | None, column: Column) -> CellText:
    if cell is None or cell.value is None:
        return CellText(DASH, reason=cell.reason if cell is not None else "")
    if cell.written:
        return CellText(cell.written, value=cell.value)
    interval = ""
    if not column.cost and cell.low is not None and cell.high is not None:
        interval = f"({in_digits(cell.low, column.digits)} to {in_digits(cell.high, column.digits)})"
    number = in_digits(cell.value, column.digits)
    return CellText(number, "*" if cell.mark else "", cell.verdict, interval, cell.best, cell.second, cell.value)


def in_digits(value: float, digits: int) -> str:
    """Format a number with thousands separators; from 1,000 on without decimals, from 10^9 on as 1.23e+45."""
    if abs(value) >= MANY_DIGITS:
        return f"{value:.2e}"
    return f"{value:z,.{digits if abs(value) < 1000 else 0}f}"


MANY_DIGITS = 1e9
"""Smallest number in scientific notation, such as the perplexity of a model that knows nothing about a text."""
GAP = 2
"""Characters between two columns."""
_EDGES = 2


def names_width(grid: TableLayout, width: int, fold: bool = True) -> int | None:
    """Width left for the row names, in characters; None if the table does not fit.

    Long names may be folded, to no less than a quarter of the width.

    Args:
        grid: the table.
        width: width available, in characters.
        fold: true if column headings may be broken too.
    """
    wanted = max(len(name) for name in (grid.corner, *map(str, grid.rows)))
    columns = sum(column_width(grid, number, fold) + GAP for number in range(len(grid.columns)))
    room = width - columns - _EDGES
    return min(wanted, room) if room >= min(wanted, max(8, width // 4)) else None


def column_width(grid: TableLayout, number: int, fold: bool = True) -> int:
    """Width of a column in characters; an interval is below its number."""
    cells = [row[number] for row in grid.cells]
    tail = max((len(cell.tail) for cell in cells), default=0)
    lines = [*heading(grid.columns[number], fold), *(cell.interval for cell in cells)]
    return max(len(line) for line in (*lines, *(cell.number + tail * " " for cell in cells)))


def heading(name: HeadingText, fold: bool = True) -> list[str]:
    """Lines of a column's heading: group, text and unit, long ones broken between words."""
    lines = [line for line in name.lines if line]
    return [part for line in lines for part in fold_words(line, WORD)] if fold else lines


def fold_words(text: str, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` characters, behind spaces and ``- _ / . : ,`` if possible."""
    lines = [""]
    for piece in re.findall(r"[^\s\-_/.:,]*[\s\-_/.:,]?", text):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        rest = lines[-1] + piece
        while len(rest.rstrip()) > width:
            lines[-1], rest = rest[:width], rest[width:]
            lines.append("")
        lines[-1] = rest
    return [line.rstrip() for line in lines if line.strip()] or [""]


def fit_width(grid: TableLayout, width: int, fold: bool = True) -> tuple[list[TableLayout], list[str]]:
    """Split a table into tables that fit a width.

    Intervals are dropped first; then, if headings may be folded, metrics whose task has a column with their mean. The
    rest is split into tables of similar size.

    Args:
        grid: the table.
        width: width available, in characters.
        fold: as in ``names_width``.

    Returns:
        The tables, and what was dropped from all of them.
    """
    plain = grid.without_intervals()
    dropped = [] if plain == grid else ["intervals"]
    if names_width(grid, width, fold) is not None:
        return [grid], []
    if names_width(plain, width, fold) is not None:
        return [plain], dropped
    if fold:
        means = {name.mean for name in grid.columns if name.mean}
        kept = [number for number, name in enumerate(grid.columns) if name.mean or name.group not in means]
        dropped += [f"{name.group} {name.text}" for number, name in enumerate(grid.columns) if number not in kept]
        plain = plain.only(kept)
    parts = _split_columns(plain, width, fold)
    titles = [plain.title, *[f"{plain.title}, continued"] * (len(parts) - 1)]
    return [plain.only(part, title) for part, title in zip(parts, titles, strict=True)], dropped


def _split_columns(grid: TableLayout, width: int, fold: bool) -> list[list[int]]:
    """Split the columns into as few tables as fit a width."""
    parts: list[list[int]] = [[]]
    count = len(grid.columns)
    for number in range(count):
        if parts[-1] and names_width(grid.only([*parts[-1], number]), width, fold) is None:
            parts.append([])
        parts[-1].append(number)
    size = -(-count // len(parts))
    even = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    return even if all(names_width(grid.only(part), width, fold) is not None for part in even) else parts
