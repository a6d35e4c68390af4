"""A comparison in every form that people and programs read: terminal, Markdown, LaTeX, CSV, JSON. Computes nothing."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from kdalign.comparison.table import Comparison, clean
from kdalign.errors import UsageError, did_you_mean, unknown
from kdalign.report.layout import (
    GAP,
    Grid,
    Name,
    Shown,
    column_width,
    fitting,
    folded,
    grids,
    heading,
    label,
    names_width,
)
from kdalign.report.screen import words
from kdalign.runs.markdown import line as markdown_line
from kdalign.runs.markdown import plain

FORMATS = ("rich", "markdown", "latex", "csv", "json")
ALL = (*FORMATS, "html")
"""With the page (``page``), which is made of runs as well."""
ENDINGS = {".txt": "rich", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html"}
PAGE = 80
"""Characters in small type that the lines of a printed page hold."""


def form_for(form: str | None, out: Path | None = None) -> str:
    """The form that was asked for by its name or by the ending of a file; the terminal's where neither says.

    Raises:
        UsageError: an unknown one.
    """
    if form is None and out is not None and out.suffix:
        ending = out.suffix.lower()
        if ending not in ENDINGS:
            near = did_you_mean(ending, ENDINGS)
            raise UsageError(f"--out {str(out)!r}: unknown ending {ending!r}{near} (accepted: {', '.join(ENDINGS)})")
        return ENDINGS[ending]
    if form is not None and form not in ALL:
        raise unknown("format", form, ALL)
    return form or "rich"


def comparison_as(comparison: Comparison, form: str, transpose: bool = False) -> RenderableType:
    """A comparison in the form asked for; all but the terminal's are a string, to be printed as it is.

    Args:
        comparison: the table.
        form: one of ``FORMATS``.
        transpose: metrics as rows, models as columns.

    Raises:
        UsageError: an unknown form.
    """
    comparison = clean(comparison)
    match form:
        case "rich":
            return _Terminal(grids(comparison, transpose), comparison.notes)
        case "markdown":
            return _markdown(grids(comparison, transpose), comparison.notes)
        case "latex":
            return _latex(grids(comparison, transpose), comparison.notes)
        case "csv":
            return _csv(comparison, transpose)
        case "json":
            return json.dumps(_transposed_json(comparison) if transpose else comparison.to_json(), indent=2)
    raise unknown("format", form, FORMATS)


@dataclass(frozen=True)
class _Terminal:
    """Tables that know the width at which they are shown."""

    grids: Sequence[Grid]
    notes: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        missing: list[str] = []
        for whole in self.grids:
            parts, left_out = fitting(whole, options.max_width)
            missing += [name for name in left_out if name not in missing]
            for part in parts:
                yield _table(part, options.max_width)
        if missing:
            more = "a wider terminal, fewer --metrics or another format has them"
            yield Text(f"· no room for {', '.join(missing)}: {more}", style="dim")
        for note in self.notes:
            yield Text(f"· {note}", style="dim")


def _table(grid: Grid, width: int) -> Table:
    """A table in which numbers stand above one another, whatever stands behind them."""
    names = names_width(grid, width) or max(8, width // 4)
    table = Table(title=words(grid.title), box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    table.title_justify, table.title_style = "left", "bold"
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
        table.add_row(Text("\n".join(folded(str(name), names))), *cells, style="dim" if name.quiet else "")
    return table


def _terminal_cell(cell: Shown, width: int, tail: int, quiet: bool) -> Text:
    """The number, what stands behind it in a place of its own, and the interval below."""
    style = "bold" if cell.best else "underline" if cell.second else ""
    before = " " * (width - tail - len(cell.number))
    below = f"\n{cell.interval.rjust(width)}" if cell.interval else ""
    return Text.assemble(before, (cell.number, style), cell.tail, below, style="dim" if quiet else "")


def _markdown(tables: Sequence[Grid], notes: Sequence[str]) -> str:
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


def _latex(tables: Sequence[Grid], notes: Sequence[str]) -> str:
    """A ``table`` environment for each table; the notes are below the first one."""
    parts: list[Grid] = []
    missing: list[str] = []
    for whole in map(_bracketed, tables):
        found, lost = fitting(whole, PAGE, fold=False)
        parts += found
        missing += [f"no room for {what}: fewer --metrics, csv and json have them" for what in lost]
    below = [*dict.fromkeys(missing), *notes]
    lines = [r"% needs \usepackage{booktabs}"]
    labels: list[str] = []
    for number, grid in enumerate(parts):
        name = "tab:" + "-".join(re.findall("[a-z0-9]+", grid.title.lower()))
        labels.append(name)
        again = f"-{labels.count(name)}" if labels.count(name) > 1 else ""
        lines += [
            "",
            r"\begin{table}[htbp]",
            r"  \centering",
            rf"  \caption{{{_latex_text(grid.title)}.{_legend(grid)}}}",
            rf"  \label{{{name}{again}}}",
            r"  \small",
            r"  \setlength{\tabcolsep}{4pt}",
            *(f"  {line}" for line in _tabular(grid)),
            *(f"  {line}" for line in (_footnotes(below) if number == 0 and below else [])),
            r"\end{table}",
        ]
    foreign = {letter for line in lines for letter in line if ord(letter) > 0x17F}
    if foreign:
        lines[0] += f"; pdflatex does not know {' '.join(sorted(foreign))}, lualatex does where the font has them"
    return "\n".join(lines)


def _bracketed(grid: Grid) -> Grid:
    """Intervals in fewer signs, so that more of them fit: ``[14.0, 27.3]``."""

    def short(cell: Shown) -> Shown:
        ends = cell.interval.strip("()").split(" to ")
        return replace(cell, interval=f"[{', '.join(ends)}]") if cell.interval else cell

    return replace(grid, cells=tuple(tuple(map(short, row)) for row in grid.cells))


def _legend(grid: Grid) -> str:
    cells = [cell for row in grid.cells for cell in row]
    said = ["best bold"] * any(cell.best for cell in cells) + ["second underlined"] * any(cell.second for cell in cells)
    return f" {', '.join(said).capitalize()}." if said else ""


def _tabular(grid: Grid) -> Iterator[str]:
    names = names_width(grid, PAGE, fold=False) or PAGE // 4
    yield rf"\begin{{tabular}}{{@{{}}l{'r' * len(grid.columns)}@{{}}}}"
    yield r"  \toprule"
    if any(name.group for name in grid.columns):
        yield from (f"  {line}" for line in _latex_groups(grid.columns))
    yield _latex_row(grid.corner, [_latex_text(name.text) for name in grid.columns])
    if any(name.unit for name in grid.columns):
        yield _latex_row("", [_latex_text(name.lines[-1]) for name in grid.columns])
    yield r"  \midrule"
    for before, name, row in zip([None, *grid.rows], grid.rows, grid.cells, strict=False):
        if name.apart and before is not None and not before.apart:
            yield r"  \midrule"
        yield _latex_row(_latex_name(str(name), names), map(_latex_number, row))
        if any(cell.interval for cell in row):
            below = [rf"{{\scriptsize {_latex_text(cell.interval)}}}" if cell.interval else "" for cell in row]
            yield _latex_row("", below) + "[2pt]"
    yield r"  \bottomrule"
    yield r"\end{tabular}"


def _latex_row(first: str, cells: Iterable[str]) -> str:
    return rf"  {' & '.join([first, *cells])} \\"


def _latex_name(name: str, width: int) -> str:
    """A row's name, on several lines where it is long."""
    lines = [_latex_start(line) for line in folded(name, width)]
    if len(lines) == 1:
        return lines[0]
    return r"\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _latex_groups(columns: Sequence[Name]) -> Iterator[str]:
    """A line of groups over the columns that they hold, and the rules below those of several."""
    heads, rules, at = [], [], 2
    for group, members in groupby(columns, key=lambda name: name.group):
        size = len(list(members))
        heads.append(rf"\multicolumn{{{size}}}{{{'c' if size > 1 else 'r'}}}{{{_latex_text(group)}}}")
        rules += [rf"\cmidrule(lr){{{at}-{at + size - 1}}}"] if group and size > 1 else []
        at += size
    yield rf"& {' & '.join(heads)} \\"
    if rules:
        yield " ".join(rules)


def _latex_number(cell: Shown) -> str:
    """The number; what stands behind it takes no width, so that numbers stand above one another."""
    number = _latex_text(cell.number)
    number = rf"\textbf{{{number}}}" if cell.best else rf"\underline{{{number}}}" if cell.second else number
    return number + (rf"\rlap{{{_latex_text(cell.tail)}}}" if cell.tail else "")


def _footnotes(notes: Iterable[str]) -> Iterator[str]:
    yield r"\par\smallskip"
    yield r"\begin{minipage}{\linewidth}\footnotesize\raggedright"
    yield from (rf"  {_latex_start(note)}\par" for note in notes)
    yield r"\end{minipage}"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: f"\\{sign}" for sign in "{}#$%&_"},
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "–": "--",
        "—": "---",
        "…": r"\ldots{}",
        "−": r"$-$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "§": r"\S{}",
        "¶": r"\P{}",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "²": "$^2$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "≈": r"$\approx$",
        "→": r"$\rightarrow$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
    }
)


def _latex_text(text: str) -> str:
    """Text as LaTeX sets it: no sign is a command, and hyphens stay hyphens."""
    return re.sub("-(?=-)", "-\0", " ".join(text.split())).translate(_LATEX).replace("\0", "{}")


def _latex_start(text: str) -> str:
    r"""Text behind a line's end, where ``\\`` would read ``[`` or ``*`` as its own."""
    return ("{}" if text.startswith(("[", "*")) else "") + _latex_text(text)


def _csv(comparison: Comparison, transpose: bool) -> str:
    """One flat table (RFC 4180): each column with the ends of its interval, and verdicts where there are any.

    A name that a spreadsheet would compute (``=1+1``) begins with a quotation mark.

    Numbers are in full, units those of the other forms. Transposed, a row is a metric and has its unit.
    """
    judged = any(cell.verdict for row in comparison.rows for cell in row.cells.values())
    parts = ("", "_low", "_high", *(["_verdict"] if judged else []))

    def values_of(row: int, key: str) -> list[str | float | None]:
        cell = comparison.rows[row].cells.get(key)
        found = [cell.value, cell.low, cell.high, cell.verdict] if cell is not None else [None, None, None, ""]
        return list(found[: len(parts)])

    rows = range(len(comparison.rows))
    lines: list[list[object]] = []
    if transpose:
        names = _told_apart([label(row) for row in comparison.rows])
        lines.append(["metric", "unit", *(f"{name}{part}" for name in names for part in parts)])
        for column in comparison.columns:
            lines.append([column.key, column.unit, *(value for row in rows for value in values_of(row, column.key))])
    else:
        keys = [column.key for column in comparison.columns]
        lines.append(["model", "kind", "seeds", *(f"{key}{part}" for key in keys for part in parts)])
        for number, row in enumerate(comparison.rows):
            seeds = " ".join(map(str, row.seeds))
            lines.append([row.name, row.kind, seeds, *(value for key in keys for value in values_of(number, key))])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows([_no_formula(value) for value in values] for values in lines)
    return buffer.getvalue()


_FORMULA = re.compile(r"""[\s'"]*[=+\-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH COMMERCIAL AT}]""")


def _no_formula(value: object) -> object:
    """A cell that a spreadsheet takes for text: numbers stay numbers, and a name that would be computed is quoted."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names of which each is there once."""
    counts = [names[: number + 1].count(name) for number, name in enumerate(names)]
    return [f"{name} #{count}" if count > 1 else name for name, count in zip(names, counts, strict=True)]


def _transposed_json(comparison: Comparison) -> dict[str, object]:
    """Metrics, each with a cell for every model in their order, None where it has none."""
    return {
        "models": [{key: value for key, value in asdict(row).items() if key != "cells"} for row in comparison.rows],
        "metrics": [
            asdict(column)
            | {"cells": [asdict(row.cells[column.key]) if column.key in row.cells else None for row in comparison.rows]}
            for column in comparison.columns
        ],
        "notes": list(comparison.notes),
    }
