"""A comparison as a LaTeX table."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from kdalign.report.layout import CellText, HeadingText, TableLayout, fit_width, fold_words, names_width

PAGE = 80
"""Characters in small type that the lines of a printed page hold."""


def as_latex(tables: Sequence[TableLayout], notes: Sequence[str]) -> str:
    """A ``table`` environment for each table; the notes are below the first one."""
    parts: list[TableLayout] = []
    missing: list[str] = []
    for whole in map(_bracketed, tables):
        found, lost = fit_width(whole, PAGE, fold=False)
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


def _bracketed(grid: TableLayout) -> TableLayout:
    """Intervals in fewer signs, so that more of them fit: ``[14.0, 27.3]``."""

    def short(cell: CellText) -> CellText:
        ends = cell.interval.strip("()").split(" to ")
        return replace(cell, interval=f"[{', '.join(ends)}]") if cell.interval else cell

    return replace(grid, cells=tuple(tuple(map(short, row)) for row in grid.cells))


def _legend(grid: TableLayout) -> str:
    cells = [cell for row in grid.cells for cell in row]
    said = ["best bold"] * any(cell.best for cell in cells) + ["second underlined"] * any(cell.second for cell in cells)
    return f" {', '.join(said).capitalize()}." if said else ""


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
    """A row's name, on several lines where it is long."""
    lines = [_latex_start(line) for line in fold_words(name, width)]
    if len(lines) == 1:
        return lines[0]
    return r"\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _latex_groups(columns: Sequence[HeadingText]) -> Iterator[str]:
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


def _latex_number(cell: CellText) -> str:
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
