"""A comparison as it is shown: tables, names and cells as text, of which terminal, Markdown and LaTeX are made."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdalign.comparison.table import Cell, Column, ComparisonTable, Row

DASH = "–"
WORD = 12
"""Characters of a heading's line, where its words can be broken."""


@dataclass(frozen=True)
class HeadingText:
    """What stands over a column or before a row.

    Attributes:
        group: stands over neighbours that share it, such as a metric's task.
        unit: empty where there is none.
        quiet: not what the table is about: a teacher, or what others have published.
        apart: of the rows that others have published.
        mean: the group whose metrics' mean this is.
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
        """Group, text and unit, each of which may be empty."""
        return self.group, self.text, f"({self.unit})" if self.unit else ""


@dataclass(frozen=True)
class CellText:
    """A cell: its number as text, what stands behind it, and its interval, or nothing.

    Attributes:
        value: the number itself, to sort by.
        reason: why there is none.
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
        """What stands behind the number."""
        return self.mark + self.verdict


@dataclass(frozen=True)
class TableLayout:
    """One table.

    Attributes:
        corner: what rows are: ``model``, or ``metric`` once transposed.
        cells: row by row.
    """

    title: str
    corner: str
    columns: tuple[HeadingText, ...]
    rows: tuple[HeadingText, ...]
    cells: tuple[tuple[CellText, ...], ...]

    @property
    def lines(self) -> list[tuple[HeadingText, tuple[CellText, ...]]]:
        """Each row's name with its cells."""
        return list(zip(self.rows, self.cells, strict=True))

    def transposed(self) -> "TableLayout":
        """Rows as columns."""
        corner = "metric" if self.corner == "model" else "model"
        return TableLayout(self.title, corner, self.rows, self.columns, tuple(zip(*self.cells, strict=True)))

    def only(self, columns: Sequence[int], title: str | None = None) -> "TableLayout":
        """Some of its columns."""
        return replace(
            self,
            title=self.title if title is None else title,
            columns=tuple(self.columns[number] for number in columns),
            cells=tuple(tuple(row[number] for number in columns) for row in self.cells),
        )

    def without_intervals(self) -> "TableLayout":
        """Numbers alone."""
        return replace(self, cells=tuple(tuple(replace(cell, interval="") for cell in row) for row in self.cells))


def table_layouts(comparison: ComparisonTable, transpose: bool = False) -> list[TableLayout]:
    """Scores, what others have published, costs and training as tables of their own."""
    made = [_grid(title, columns, rows) for title, columns, rows in _tables(comparison)]
    return [grid.transposed() for grid in made] if transpose else made


def _tables(comparison: ComparisonTable) -> list[tuple[str, list[Column], list[Row]]]:
    """Scores by task, if no row is of several; else together.

    Published rows are in every table of measured scores that has a column of theirs. What nobody measured is a table of
    its own: beside measured scores it would be dashes, and would take the width from their intervals.
    """
    scores = [column for column in comparison.columns if not column.cost and not column.published]
    tasks = list(dict.fromkeys(column.task for column in scores if column.task))
    measured = [row for row in comparison.rows if row.kind != "reference"]
    references = [row for row in comparison.rows if row.kind == "reference"]
    of = [{column.task for column in scores if column.task and column.key in row.cells} for row in measured]
    found = [("Scores", scores, measured)]
    if len(tasks) > 1 and all(len(own) < 2 for own in of):
        rows = list(zip(measured, of, strict=True))
        found = [(f"Scores: {task}", scores, [row for row, own in rows if own == {task}]) for task in tasks]
        found.append(("Scores", scores, [row for row, own in rows if not own]))
    costs = [column for column in comparison.columns if column.cost]
    own, made = ([column for column in costs if column.training is training] for training in (False, True))
    found.append(("Published, not measured here", [c for c in comparison.columns if c.published], references))
    found.append(("Costs", own, _with(measured, own)))
    found.append(("Training", made, _with(measured, made)))
    filled = [(title, [c for c in columns if _with(rows, [c])], rows) for title, columns, rows in found]
    return [
        (title, columns, _with(rows, columns) if rows is references else [*rows, *_with(references, columns)])
        for title, columns, rows in filled
        if columns
    ]


def _with(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """The rows that have one of the columns."""
    return [row for row in rows if any(column.key in row.cells for column in columns)]


def _grid(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> TableLayout:
    return TableLayout(
        title,
        "model",
        tuple(map(_of_column, columns)),
        tuple(HeadingText(row_label(row), quiet=row.kind in _QUIET, apart=row.kind == "reference") for row in rows),
        tuple(tuple(_shown(row.cells.get(column.key), column) for column in columns) for row in rows),
    )


_QUIET = ("teacher", "difference", "baseline", "reference")


def _of_column(column: Column) -> HeadingText:
    head = f"{column.task} "
    grouped = bool(column.task) and column.title.startswith(head)
    return HeadingText(
        column.title.removeprefix(head) if grouped else column.title,
        group=column.task if grouped else "",
        unit=column.unit,
        mean=column.task if column.key == column.task else "",
    )


def row_label(row: Row) -> str:
    """A row's name, with how many seeds it is the mean of."""
    return f"{row.name} ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else row.name + row.mark


def _shown(cell: Cell | None, column: Column) -> CellText:
    if cell is None or cell.value is None:
        return CellText(DASH, reason=cell.reason if cell is not None else "")
    if cell.written:
        return CellText(cell.written, value=cell.value)
    interval = ""
    if not column.cost and cell.low is not None and cell.high is not None:
        interval = f"({in_digits(cell.low, column.digits)} to {in_digits(cell.high, column.digits)})"
    shown = in_digits(cell.value, column.digits)
    return CellText(shown, "*" if cell.mark else "", cell.verdict, interval, cell.best, cell.second, cell.value)


def in_digits(value: float, digits: int) -> str:
    """A number with its thousands apart; one of thousands needs no decimals, one of very many digits is shortened."""
    if abs(value) >= MANY_DIGITS:
        return f"{value:.2e}"
    return f"{value:z,.{digits if abs(value) < 1000 else 0}f}"


MANY_DIGITS = 1e9
"""From here on a number is written as 1.23e+45: what a model that knows nothing of a text has as its perplexity."""
GAP = 2
"""Characters between two columns."""
_EDGES = 2


def names_width(grid: TableLayout, width: int, fold: bool = True) -> int | None:
    """How much of a width the names before the rows have; None where the grid does not fit.

    Long ones may be folded, to no less than a quarter of the width.

    Args:
        grid: what is to be shown.
        width: in characters.
        fold: whether headings may be broken, too.
    """
    wanted = max(len(name) for name in (grid.corner, *map(str, grid.rows)))
    columns = sum(column_width(grid, number, fold) + GAP for number in range(len(grid.columns)))
    room = width - columns - _EDGES
    return min(wanted, room) if room >= min(wanted, max(8, width // 4)) else None


def column_width(grid: TableLayout, number: int, fold: bool = True) -> int:
    """How wide a column is, in characters; an interval is below its number."""
    cells = [row[number] for row in grid.cells]
    tail = max((len(cell.tail) for cell in cells), default=0)
    lines = [*heading(grid.columns[number], fold), *(cell.interval for cell in cells)]
    return max(len(line) for line in (*lines, *(cell.number + tail * " " for cell in cells)))


def heading(name: HeadingText, fold: bool = True) -> list[str]:
    """A column's heading as lines: group, text and unit, long ones broken where they can be."""
    lines = [line for line in name.lines if line]
    return [part for line in lines for part in fold_words(line, WORD)] if fold else lines


def fold_words(text: str, width: int) -> list[str]:
    """Lines of at most so many characters, broken behind spaces and ``- _ / . : ,`` where that is possible."""
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
    """A grid as tables that fit a width.

    Intervals go first; then, where headings are folded, metrics whose task has a column of its own, their mean; what is
    left is several tables of like size.

    Args:
        grid: what is to be shown.
        width: in characters.
        fold: as in ``names_width``.

    Returns:
        The tables, and what is in none of them.
    """
    plain = grid.without_intervals()
    lost = [] if plain == grid else ["intervals"]
    if names_width(grid, width, fold) is not None:
        return [grid], []
    if names_width(plain, width, fold) is not None:
        return [plain], lost
    if fold:
        means = {name.mean for name in grid.columns if name.mean}
        kept = [number for number, name in enumerate(grid.columns) if name.mean or name.group not in means]
        lost += [f"{name.group} {name.text}" for number, name in enumerate(grid.columns) if number not in kept]
        plain = plain.only(kept)
    parts = _parts(plain, width, fold)
    titles = [plain.title, *[f"{plain.title}, continued"] * (len(parts) - 1)]
    return [plain.only(part, title) for part, title in zip(parts, titles, strict=True)], lost


def _parts(grid: TableLayout, width: int, fold: bool) -> list[list[int]]:
    """Its columns, in as few tables as fit a width."""
    parts: list[list[int]] = [[]]
    count = len(grid.columns)
    for number in range(count):
        if parts[-1] and names_width(grid.only([*parts[-1], number]), width, fold) is None:
            parts.append([])
        parts[-1].append(number)
    size = -(-count // len(parts))
    even = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    return even if all(names_width(grid.only(part), width, fold) is not None for part in even) else parts
