"""A comparison as Rich tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from kdalign.report.layout import GAP, CellText, TableLayout, column_width, fit_width, fold_words, heading, names_width
from kdalign.report.style import new_table


@dataclass(frozen=True)
class TerminalTables:
    """Tables that fit themselves to the console's width."""

    grids: Sequence[TableLayout]
    notes: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        missing: list[str] = []
        for grid in self.grids:
            parts, left_out = fit_width(grid, options.max_width)
            missing += [name for name in left_out if name not in missing]
            for part in parts:
                yield _table(part, options.max_width)
        if missing:
            more = "a wider terminal, fewer --metrics or another format has them"
            yield Text(f"· no room for {', '.join(missing)}: {more}", style="dim")
        for note in self.notes:
            yield Text(f"· {note}", style="dim")


def _table(grid: TableLayout, width: int) -> Table:
    """A table with aligned numbers, whatever marks stand behind them."""
    names = names_width(grid, width) or max(8, width // 4)
    table = new_table(grid.title)
    table.padding = (0, GAP - 1, 0, 0)
    table.add_column(grid.corner, width=names, overflow="fold")
    widths = [column_width(grid, number) for number in range(len(grid.columns))]
    tails = [max((len(row[number].tail) for row in grid.cells), default=0) for number in range(len(grid.columns))]
    for name, size in zip(grid.columns, widths, strict=True):
        lines = [line.rjust(size) for line in heading(name)]
        table.add_column(Text("\n".join(lines)), overflow="fold", width=size)
    for before, name, row in zip([None, *grid.rows], grid.rows, grid.cells, strict=False):
        if name.apart and before is not None and not before.apart:
            table.add_section()
        cells = [
            _terminal_cell(cell, size, tail, column.quiet)
            for cell, size, tail, column in zip(row, widths, tails, grid.columns, strict=True)
        ]
        table.add_row(Text("\n".join(fold_words(str(name), names))), *cells, style="dim" if name.quiet else "")
    return table


def _terminal_cell(cell: CellText, width: int, tail: int, quiet: bool) -> Text:
    """The number, its marks in a column of their own, and the interval below."""
    style = "bold" if cell.best else "underline" if cell.second else ""
    before = " " * (width - tail - len(cell.number))
    below = f"\n{cell.interval.rjust(width)}" if cell.interval else ""
    return Text.assemble(before, (cell.number, style), cell.tail, below, style="dim" if quiet else "")
