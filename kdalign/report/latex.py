"""A comparison as a LaTeX table."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from kdalign.report.layout import CellText, HeadingText, TableLayout, fit_width, fold_words, names_width

PAGE = 80
"""Characters in small type that fit on a line of a printed page."""


def as_latex(tables: Sequence[TableLayout], notes: Sequence[str]) -> str:
    """Write a ``table`` environment for each table; the footnotes are below the first one."""
    parts: list[TableLayout] = []
    missing: list[str] = []
    for table in map(_bracket_intervals, tables):
        fitting, dropped = fit_width(table, PAGE, fold=False)
        parts += fitting
        missing += [f"no room for {name}: use fewer --metrics, csv or json" for name in dropped]
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


def _bracket_intervals(grid: TableLayout) -> TableLayout:
    """Shorten intervals to ``[14.0, 27.3]``, so that more of them fit."""

    def short(cell: CellText) -> CellText:
        ends = cell.interval.strip("()").split(" to ")
        return replace(cell, interval=f"[{', '.join(ends)}]") if cell.interval else cell

    return replace(grid, cells=tuple(tuple(map(short, row)) for row in grid.cells))


def _legend(grid: TableLayout) -> str:
    cells = [cell for row in grid.cells for cell in row]
    parts = ["best bold"] * any(c.best for c in cells) + ["second underlined"] * any(c.second for c in cells)
    return f" {', '.join(parts).capitalize()}." if parts else ""


def _tabular(grid: TableLayout) -> Iterator[str]:
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
    """A row's name, on several lines if it is long."""
    lines = [_latex_start(line) for line in fold_words(name, width)]
    if len(lines) == 1:
        return lines[0]
    return r"\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _latex_groups(columns: Sequence[HeadingText]) -> Iterator[str]:
    """A line of groups above their columns, with rules below groups of several."""
    heads, rules, at = [], [], 2
    for group, members in groupby(columns, key=lambda name: name.group):
        size = len(list(members))
        heads.append(rf"\multicolumn{{{size}}}{{{'c' if size > 1 else 'r'}}}{{{_latex_text(group)}}}")
        rules += [rf"\cmidrule(lr){{{at}-{at + size - 1}}}"] if group and size > 1 else []
        at += size
    yield rf"& {' & '.join(heads)} \\"
    if rules:
        yield " ".join(rules)


def _latex_number(cell: CellText) -> str:
    """The number; marks behind it take no width, so that numbers stay aligned."""
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
    """Escape text for LaTeX; hyphens stay hyphens."""
    return re.sub("-(?=-)", "-\0", " ".join(text.split())).translate(_LATEX).replace("\0", "{}")


def _latex_start(text: str) -> str:
    r"""Escape text that follows a ``\\``, which would read a leading ``[`` or ``*`` as its argument."""
    return ("{}" if text.startswith(("[", "*")) else "") + _latex_text(text)
