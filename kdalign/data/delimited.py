"""Read delimited text: csv by RFC 4180, and tsv, whose quotes are text or enclose cells, as the file shows.

Cells stay text as written: 007, 1.0, NA and None. An empty cell is None, and a cell of two quotes is the empty text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NoReturn

from kdalign.errors import UsageError, printable, shorten

Cell = str | None
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""Delimiters, and their names in error lines."""


@dataclass(frozen=True)
class _Table:
    """Cells of a file and its header in one list; a list per row would take several times as long.

    Attributes:
        cells: one row after another.
        widths: number of cells of each row.
        lines: line of the file on which each row begins, from 1.
        stray: first line with a quote that neither encloses a cell nor is doubled inside a quoted one; 0 if none.
        broken: first line on which a cell begins with such a quote; 0 if none.
        doubled: true if a quoted cell has a doubled quote inside.
        first_quoted: first line with a quoted cell; 0 if none.
        header_quoted: true if every cell of the header is quoted.
        read: characters of all complete rows.
    """

    cells: list[Cell]
    widths: list[int]
    lines: list[int]
    stray: int = 0
    broken: int = 0
    doubled: bool = False
    first_quoted: int = 0
    header_quoted: bool = False
    read: int = 0

    @property
    def header(self) -> list[Cell]:
        """Cells of the first row."""
        return self.cells[: self.widths[0]]

    @property
    def uneven(self) -> int | None:
        """First row with more or fewer cells than the header; None if there is none."""
        return next((row for row, width in enumerate(self.widths) if width != self.widths[0]), None)


def read_delimited(text: str, delimiter: str, where: str) -> tuple[list[str], list[list[Cell]]]:
    """Read columns by their names in the first line.

    If the header lacks the expected delimiter but has semicolons, tabs, bars or commas, those divide the cells. Quotes
    in a file with tabs are removed if all of them follow the rules of csv.

    Args:
        text: text of the file.
        delimiter: the one that the file's name implies.
        where: name of the file, for error lines.

    Raises:
        UsageError: no header, two columns of one name, a row with more or fewer cells than the header, a quote that is
            not closed, or quotes that could be text or enclose cells.
    """
    stated = re.match(r"sep=(.)(?:\r\n?|\n)", text)  # Excel's first line
    if stated:
        text, delimiter = text[stated.end() :], stated[1] if stated[1] in NAMES else delimiter
    used = _find_delimiter(text, delimiter)
    if used is None:
        raise UsageError(f"{where} is empty: its first line must name the columns")
    table = _parse_tabs(text, where) if used == "\t" else _parse_csv(text, used, where)
    return _columns(table, used, delimiter, where)


def _find_delimiter(text: str, delimiter: str) -> str | None:
    """Find the delimiter that the header has; None without a header."""
    header = next((line for line in re.split(r"[\r\n]+", text[:_LONGEST_HEADER]) if line.strip()), "")
    if not header:
        return None
    return delimiter if delimiter in header else next((one for one in NAMES if one in header), delimiter)


def _columns(table: _Table, used: str, delimiter: str, where: str) -> tuple[list[str], list[list[Cell]]]:
    """Divide a table into its columns."""
    if table.uneven is not None:
        raise UsageError(f"{where}, {_explain_width(table, table.uneven, used, delimiter)}")
    names = [f"Unnamed: {number}" if cell is None else cell for number, cell in enumerate(table.header)]
    return names, [table.cells[len(names) + number :: len(names)] for number in range(len(names))]


class NotInParts(Exception):
    """A file that can only be read as a whole."""


def read_delimited_parts(
    parts: Callable[[], Iterator[str]], delimiter: str, where: str
) -> Iterator[tuple[list[str], list[list[Cell]]]]:
    """Read columns as ``read_delimited`` does, some rows at a time.

    Args:
        parts: begins to read the text, in parts that end with a line.
        delimiter: the one that the file's name implies.
        where: name of the file, for error lines.

    Raises:
        UsageError: as of ``read_delimited``.
        NotInParts: the file names its delimiter itself, or has quotes with tabs that only the whole file explains.
    """
    first = next(parts(), "")
    used = _find_delimiter(first, delimiter)
    if used is None or first.startswith("sep="):
        raise NotInParts
    quoted, stray = (True, 0) if used != "\t" else _quotes_with_tabs(parts)
    header: _Table | None = None
    carried, line = "", 1
    for part in chain(parts(), [None]):
        text = carried + (part or "")
        if quoted and '"' in text:
            table = _parse_quoted(text, used, line, final=part is None)
        else:
            table = _parse_plain(text, used, line)
        if table.broken:
            _refuse_broken(table, where)
        carried = text[table.read :]
        line += count_lines(text[: table.read])
        if table.widths:
            header = header or _Table(table.header, table.widths[:1], table.lines[:1])
            ours = table if header.lines == table.lines[:1] else _below(header, table)
            yield _columns(replace(ours, stray=stray), used, delimiter, where)


def _below(header: _Table, table: _Table) -> _Table:
    """Put the header above rows that are further below in the file."""
    return _Table(header.cells + table.cells, header.widths + table.widths, header.lines + table.lines)


def _quotes_with_tabs(parts: Callable[[], Iterator[str]]) -> tuple[bool, int]:
    """Return whether quotes in a file with tabs enclose cells, and the first line with a stray one, as ``_parse_tabs``.

    Raises:
        NotInParts: it cannot be told from parts.
    """
    carried, line, doubled, any_quote = "", 1, False, False
    header_quoted: bool | None = None
    for part in chain(parts(), [None]):
        text = carried + (part or "")
        table = _parse_quoted(text, "\t", line, final=part is None)
        if table.stray:
            return False, table.stray
        if table.widths and header_quoted is None:
            header_quoted = table.header_quoted
        doubled, any_quote = doubled or table.doubled, any_quote or bool(table.first_quoted)
        carried, line = text[table.read :], line + count_lines(text[: table.read])
    if any_quote and not (doubled or header_quoted):
        raise NotInParts
    return any_quote, 0


def count_lines(text: str) -> int:
    """Count the line ends of a text."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


_LONGEST_HEADER = 1 << 20
"""Number of characters that are searched for the end of the header."""


def _parse_csv(text: str, delimiter: str, where: str) -> _Table:
    """Parse by the rules of csv."""
    if '"' not in text:
        return _parse_plain(text, delimiter)
    table = _parse_quoted(text, delimiter)
    if table.broken:
        _refuse_broken(table, where)
    return table


def _refuse_broken(table: _Table, where: str) -> NoReturn:
    raise UsageError(
        f"{where}, line {table.broken}: a cell that begins with a quote must end with one, and a quote inside is "
        'written twice ("")'
    )


def _parse_tabs(text: str, where: str) -> _Table:
    """Parse a file with tabs: quotes are removed if all follow the rules of csv; otherwise they are text.

    A csv writer encloses every cell that has a quote inside: one stray quote shows that the file was written without
    quoting, as GLUE's own files are.
    """
    plain = _parse_plain(text, "\t")
    if '"' not in text:
        return plain
    table = _parse_quoted(text, "\t")
    if table.stray:
        return replace(plain, stray=table.stray)
    if table.doubled or table.header_quoted or plain.uneven is not None:
        return table
    raise UsageError(
        f"{where}, line {table.first_quoted}: it cannot be told whether the quotes around a cell are a part of its "
        "text, as both readings fit the file; save it as csv, jsonl or parquet"
    )


def _parse_plain(text: str, delimiter: str, first: int = 1) -> _Table:
    """Parse cells that end at the delimiter or the line end, whatever they hold; blank lines are skipped.

    ``first`` is the number of the text's first line.
    """
    every = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbers = [number for number, line in enumerate(every, first) if delimiter in line or line.strip()]
    rows = [every[number - first] for number in numbers]
    cells = [cell or None for cell in delimiter.join(rows).split(delimiter)] if rows else []
    return _Table(cells, [row.count(delimiter) + 1 for row in rows], numbers, read=len(text))


def _parse_quoted(text: str, delimiter: str, first: int = 1, final: bool = True) -> _Table:
    """Parse cells that may be quoted, with line ends and doubled quotes inside.

    Args:
        text: text from the beginning of a row.
        delimiter: divides cells.
        first: number of the text's first line.
        final: the file ends with the text; otherwise its last row is parsed only if the text has all of it.
    """
    # Possessive, so that a cell whose quotes do not fit is given up at once. The second choice always fits.
    mark = re.escape(delimiter)
    pattern = re.compile(rf'(?:"([^"]*+(?:""[^"]*+)*+)"|([^{mark}\r\n]*+))({mark}|\r\n?|\n|\Z)')
    cells: list[Cell] = []
    widths: list[int] = []
    lines: list[int] = []
    line = begun = first
    start = read = stray = broken = first_quoted = 0
    doubled, header_quoted = False, True
    for found in pattern.finditer(text):
        inside, plain, end = found.groups()
        if not final and inside is None and plain[:1] == '"':  # its end may still come
            break
        if inside is not None:
            first_quoted = first_quoted or line
            doubled = doubled or '""' in inside
            cells.append(inside.replace('""', '"'))
            line += inside.count("\n") + inside.count("\r") - inside.count("\r\n")
        else:
            if '"' in plain:
                stray = stray or line
                broken = broken or (line if plain[0] == '"' else 0)
            header_quoted = header_quoted and bool(widths)
            cells.append(plain or None)
        if end != delimiter:
            if inside is not None or len(cells) - start > 1 or (plain and plain.strip()):
                widths.append(len(cells) - start)
                lines.append(begun)
            else:  # a blank line is not a row
                cells.pop()
            start = len(cells)
            line += 1
            begun = line
            read = found.end()
    return _Table(cells[:start], widths, lines, stray, broken, doubled, first_quoted, header_quoted, read)


def _explain_width(table: _Table, row: int, used: str, expected: str) -> str:
    """Explain a row of another length than the header, as a clause."""
    cells, header = table.widths[row], table.widths[0]
    said = (
        f"line {table.lines[row]} has {_count(cells, 'cell')}, "
        f"and the header {header} ({preview_cells(table.header)}), divided by {NAMES[used]}"
    )
    if used != expected:
        return f"{said}, because the header has no {NAMES[expected]}"
    if used == "\t" and table.stray:
        return f"{said}; quotes are read as text, as one on line {table.stray} is neither around a cell nor doubled"
    if cells > header and used != "\t":
        return f'{said}; a cell with one of these in its text has quotes around it ("...")'
    return said


def preview_cells(cells: Sequence[Cell]) -> str:
    """Format the first cells for an error line."""
    return shorten(printable(", ".join(repr(cell or "") for cell in cells)), 120)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
