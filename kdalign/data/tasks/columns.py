"""What the cells of a column are: text, numbers, or something that is neither and is refused with its row."""

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
"""Names that a column of text is known by."""

Kind = Literal["text", "digits", "number", "truth", "other"]
"""Of a cell: ``digits`` is a number that is written as text."""

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
"""White space, control characters, and those without width: a text of these alone says nothing."""


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be read: no character, or white space and control characters alone."""
    return not text.strip(_NOTHING)


def is_missing(cell: object) -> bool:
    """Whether a cell holds nothing: None, or the NaN that stands for it in columns of numbers."""
    if isinstance(cell, float | np.floating):
        return math.isnan(cell)
    return cell is None or type(cell).__name__ in ("NaTType", "NAType")


def column_cells(table: "pd.DataFrame", column: str) -> list[Any]:
    """A column's cells as Python's own values."""
    found: list[Any] = table[column].tolist()
    return found


def check_column(table: "pd.DataFrame", column: str, what: str, where: str) -> None:
    """Refuse a table without a column, and name the nearest.

    Args:
        table: that was read.
        column: its name.
        what: who needs it, such as ``task 'sst2'``.
        where: which table, for the error line.
    """
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        raise UsageError(
            f"{what} needs column {column!r}, which {where} lacks{did_you_mean(column, names)} "
            f"(it has: {', '.join(names) or 'none'}){missing_header_hint(table)}"
        )


def read_texts(table: "pd.DataFrame", column: str, where: str, missing: str | None = None) -> tuple[str, ...]:
    """A column's texts.

    Args:
        table: that was read.
        column: of it.
        where: which table, for error lines.
        missing: what stands for a cell that holds nothing; None to refuse it.

    Raises:
        UsageError: a cell that is no text, or text that cannot be written as UTF-8; the line has the row.
    """
    found = []
    for row, cell in enumerate(column_cells(table, column)):
        if not isinstance(cell, str):
            if not is_missing(cell):
                raise not_text_error(cell, f"{where}: row {row}", column)
            if missing is None:
                raise UsageError(f"{where}: row {row} has no text in column {column!r}")
            cell = missing
        found.append(check_text(cell, f"{where}: row {row}", column))
    return tuple(found)


def check_text(text: str, where: str, column: str) -> str:
    """A text that can be written as UTF-8: one that holds no half of a surrogate pair.

    Raises:
        UsageError: it cannot.
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
    """The error for a cell that is something else than text."""
    return UsageError(f"{where} has {describe_cell(cell)} in column {column!r}, where text is asked for")


def describe_cell(cell: object) -> str:
    """What a cell is, with its beginning, for an error line."""
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
    """The kind of a cell that holds something."""
    if isinstance(cell, str):
        return "digits" if parse_number(cell) is not None else "text"
    if isinstance(cell, bool | np.bool_):
        return "truth"
    return "number" if isinstance(cell, int | float | Decimal | np.number) else "other"


def cell_kinds(cells: Iterable[object]) -> set[Kind]:
    """The kinds of all cells that hold something."""
    return {cell_kind(cell) for cell in cells if not is_missing(cell)}


def parse_number(cell: object) -> float | None:
    """The number that a cell holds or that its text writes; None where it is none. A comma divides no decimals."""
    if isinstance(cell, str):
        text = cell.strip()
        return float(text) if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text) else None
    if isinstance(cell, bool | np.bool_) or not isinstance(cell, int | float | Decimal | np.number):
        return None
    try:
        return float(cell)
    except OverflowError:
        return math.inf


def parse_numbers(cells: Sequence[object], where: str, column: str, finite: bool = True) -> np.ndarray[Any, Any]:
    """Cells that are numbers, or write one, as float64.

    Args:
        cells: of the column.
        where: which table, for error lines.
        column: its name.
        finite: whether infinities and NaN are refused, too.

    Raises:
        UsageError: one is none, or not finite; the line has the row.
    """
    found = [parse_number(cell) for cell in cells]
    for row, value in enumerate(found):
        if value is None or (finite and not math.isfinite(value)):
            raise UsageError(
                f"{where}: row {row} has {describe_cell(cells[row])} in column {column!r}, where a "
                f"{'finite ' if value is not None else ''}number is asked for"
                + ("; write its decimals after a point" if value is None and has_comma(cells[row]) else "")
            )
    return np.array(found, dtype=np.float64)


def has_comma(cell: object) -> bool:
    """Whether a cell writes a number whose decimals follow a comma."""
    return isinstance(cell, str) and _NUMBER.fullmatch(cell.strip().replace(",", ".", 1)) is not None


def missing_header_hint(table: "pd.DataFrame") -> str:
    """A clause for an error line where the columns' names look like a row of data; else nothing."""
    names = [str(name) for name in table.columns]
    if any(looks_like_data(name) for name in names):
        first = shorten(printable(", ".join(map(repr, names))), 100)
        return f"; the first line looks like a row ({first}): a header such as text,label must come before it"
    return ""


def looks_like_data(name: str) -> bool:
    """Whether a column's name is a number or a sentence, as the first row of a file without a header is."""
    return parse_number(name) is not None or len(name.split()) > _MOST_WORDS or name.rstrip().endswith((".", "!", "?"))


_MOST_WORDS = 5
"""Of a column's name."""
