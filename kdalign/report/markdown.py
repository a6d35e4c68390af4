"""A comparison as Markdown."""

from collections.abc import Sequence

from kdalign.report.layout import CellText, TableLayout
from kdalign.runs.markdown import escape
from kdalign.runs.markdown import escape_line as markdown_line


def as_markdown(tables: Sequence[TableLayout], notes: Sequence[str]) -> str:
    """Write Markdown tables with their footnotes below."""
    lines = []
    for grid in tables:
        lines.append(f"| {grid.corner} | " + " | ".join(escape(str(name)) for name in grid.columns) + " |")
        lines.append("|---|" + "---:|" * len(grid.columns))
        for name, row in grid.lines:
            lines.append(f"| {escape(str(name))} | " + " | ".join(map(_markdown_cell, row)) + " |")
        lines.append("")
    lines += [f"- {markdown_line(note)}" for note in notes]
    return "\n".join(lines)


def _markdown_cell(cell: CellText) -> str:
    number = escape(cell.number)
    number = f"**{number}**" if cell.best else f"<u>{number}</u>" if cell.second else number
    return " ".join(filter(None, [number + cell.tail, cell.interval]))
