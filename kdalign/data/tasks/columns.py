"""Check the cells of a column: text, numbers, or an error that names the row."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdalign.errors import UsageError, did_you_mean, printable, shorten

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = ("text", "sentence", "content", "document", "body", "review")
"""Usual names of a column of text."""

Kind = Literal["text", "digits", "number", "truth", "other"]
"""Kind of a cell; ``digits`` is a number written as text."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)
_NOTHING = (
    "".join(
        chr(code)
        for span in ((0, 33), (0x7F, 0xA1), (0x2000, 0x2010), (0x2028, 0x2030), (0x205F, 0x2065), (0xFEFF, 0xFF00))
        for code in range(*span)
    )
    + "\u1680\u3000"
)
"""White space, control characters, and characters without width: a text of these alone is blank."""


def is_blank(text: str) -> bool:
    """Return whether a text is empty, or has white space and control characters alone."""
    return not text.strip(_NOTHING)


def is_missing(cell: object) -> bool:
    """Return whether a cell is None, or the NaN that stands for it in columns of numbers."""
    if isinstance(cell, float | np.floating):
        return math.isnan(cell)
    return cell is None or type(cell).__name__ in ("NaTType", "NAType")


def column_cells(table: "pd.DataFrame", column: str) -> list[Any]:
    """Return a column's cells as Python values."""
    found: list[Any] = table[column].tolist()
    return found


def check_column(table: "pd.DataFrame", column: str, what: str, where: str) -> None:
    """Refuse a table without a column, and name the nearest.

    Args:
        table: table to look in.
        column: its name.
        what: user of the column, such as ``task 'sst2'``.
        where: name of the table, for the error line.
    """
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        raise UsageError(
            f"{what} needs column {column!r}, which {where} lacks{did_you_mean(column, names)} "
            f"(it has: {', '.join(names) or 'none'}){missing_header_hint(table)}"
        )


def read_texts(
    table: "pd.DataFrame", column: str, where: str, missing: str | None = None, first: int = 0
) -> tuple[str, ...]:
    """Read a column of texts.

    Args:
        table: table to read from.
        column: its name.
        where: name of the table, for error lines.
        missing: text for a missing cell; None to refuse it.
        first: number of the table's first row.

    Raises:
        UsageError: a cell that is not text, or text that is not UTF-8; the line names the row.
    """
    found = []
    for row, cell in enumerate(column_cells(table, column), first):
        if not isinstance(cell, str):
            if not is_missing(cell):
                raise not_text_error(cell, f"{where}: row {row}", column)
            if missing is None:
                raise UsageError(f"{where}: row {row} has no text in column {column!r}")
            cell = missing
        found.append(check_text(cell, f"{where}: row {row}", column))
    return tuple(found)


def check_text(text: str, where: str, column: str) -> str:
    """Return a text that can be written as UTF-8, without halves of surrogate pairs.

    Raises:
        UsageError: it has one.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise UsageError(
                f"{where} has half a character in column {column!r} ({half}, a surrogate without its pair)"
            ) from None
    return text


def not_text_error(cell: object, where: str, column: str) -> UsageError:
    """Build the error for a cell that is not text."""
    return UsageError(f"{where} has {describe_cell(cell)} in column {column!r}, where text is expected")


def describe_cell(cell: object) -> str:
    """Describe a cell and show its beginning, for an error line."""
    match cell:
        case bool() | np.bool_():
            return f"the truth value {str(bool(cell)).lower()}"
        case int() | float() | Decimal() | np.number():
            return f"the number {cell}"
        case bytes() | bytearray():
            return "bytes"
        case dict():
            return f"an object ({_beginning(cell)})"
        case list() | tuple() | set() | np.ndarray():
            return f"a list ({_beginning(cell.tolist() if isinstance(cell, np.ndarray) else cell)})"
        case date() | time():
            return f"a time ({cell})"
        case str():
            return f"the text {shorten(printable(cell), 60)!r}"
        case _:
            return "nothing" if is_missing(cell) else f"a value of type {type(cell).__name__}"


def _beginning(value: object) -> str:
    return shorten(printable(json.dumps(value, ensure_ascii=False, default=str)), 60)


def cell_kind(cell: object) -> Kind:
    """Return the kind of a cell that is not missing."""
    if isinstance(cell, str):
        return "digits" if parse_number(cell) is not None else "text"
    if isinstance(cell, bool | np.bool_):
        return "truth"
    return "number" if isinstance(cell, int | float | Decimal | np.number) else "other"


def cell_kinds(cells: Iterable[object]) -> set[Kind]:
    """Return the kinds of all cells that are not missing."""
    return {cell_kind(cell) for cell in cells if not is_missing(cell)}


def parse_number(cell: object) -> float | None:
    """Parse a number, or the text of one; None if it is none. A decimal comma is not accepted."""
    if isinstance(cell, str):
        text = cell.strip()
        return float(text) if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text) else None
    if isinstance(cell, bool | np.bool_) or not isinstance(cell, int | float | Decimal | np.number):
        return None
    try:
        return float(cell)
    except OverflowError:
        return math.inf


def parse_numbers(
    cells: Sequence[object], where: str, column: str, finite: bool = True, first: int = 0
) -> np.ndarray[Any, Any]:
    """Parse cells that are numbers, or the text of one, as float64.

    Args:
        cells: cells of the column.
        where: name of the table, for error lines.
        column: its name.
        finite: refuse infinities and NaN, too.
        first: number of the first cell's row.

    Raises:
        UsageError: a cell that is not a number, or not finite; the line names the row.
    """
    found = [parse_number(cell) for cell in cells]
    for row, value in enumerate(found):
        if value is None or (finite and not math.isfinite(value)):
            raise UsageError(
                f"{where}: row {first + row} has {describe_cell(cells[row])} in column {column!r}, where a "
                f"{'finite ' if value is not None else ''}number is expected"
                + ("; write its decimals after a point" if value is None and has_comma(cells[row]) else "")
            )
    return np.array(found, dtype=np.float64)


def has_comma(cell: object) -> bool:
    """Return whether a cell is a number with a decimal comma."""
    return isinstance(cell, str) and _NUMBER.fullmatch(cell.strip().replace(",", ".", 1)) is not None


def missing_header_hint(table: "pd.DataFrame") -> str:
    """Hint, for an error line, that column names look like a row of data; empty if they do not."""
    names = [str(name) for name in table.columns]
    if any(looks_like_data(name) for name in names):
        first = shorten(printable(", ".join(map(repr, names))), 100)
        return f"; the first line looks like a row ({first}): a header such as text,label must come before it"
    return ""


def looks_like_data(name: str) -> bool:
    """Return whether a column's name is a number or a sentence, like the first row of a file without a header."""
    return parse_number(name) is not None or len(name.split()) > _MOST_WORDS or name.rstrip().endswith((".", "!", "?"))


_MOST_WORDS = 5
"""Largest number of words of a column's name."""
