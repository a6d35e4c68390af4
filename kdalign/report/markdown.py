"""A comparison as Markdown."""

from collections.abc import Sequence

from kdalign.report.layout import Grid, Shown
from kdalign.runs.markdown import line as markdown_line
from kdalign.runs.markdown import plain


def as_markdown(tables: Sequence[Grid], notes: Sequence[str]) -> str:
    lines = []
    for grid in tables:
        lines.append(f"| {grid.corner} | " + " | ".join(plain(str(name)) for name in grid.columns) + " |")
        lines.append("|---|" + "---:|" * len(grid.columns))
        for name, row in grid.lines:
            lines.append(f"| {plain(str(name))} | " + " | ".join(map(_markdown_cell, row)) + " |")
        lines.append("")
    lines += [f"- {markdown_line(note)}" for note in notes]
    return "\n".join(lines)


def _markdown_cell(cell: Shown) -> str:
    number = plain(cell.number)
    number = f"**{number}**" if cell.best else f"<u>{number}</u>" if cell.second else number
    return " ".join(filter(None, [number + cell.tail, cell.interval]))
