"""Rows of a split that is never held as a whole: read from the first one, or from a later one, some at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdalign.data.delimited import NotInParts
from kdalign.data.split_files import require_files
from kdalign.data.table_parts import count_parquet_rows, table_parts
from kdalign.data.tables import FORMATS, PACKED_FORMATS, TEXT_FORMATS, file_format, from_columns
from kdalign.data.tasks.columns import column_cells
from kdalign.data.tasks.hub import stream_hub_tables
from kdalign.data.tasks.task import DataSource
from kdalign.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

STREAM_FORMATS = (*TEXT_FORMATS, *PACKED_FORMATS)
"""Formats of a split that is read as a stream."""


@dataclass(frozen=True)
class RowStream:
    """The rows of a split in their order.

    Attributes:
        source: a folder, or a data set on the hub.
        split: its name.
        text_files: accept files of lines of text, too.
    """

    source: DataSource
    split: str
    text_files: bool = True

    @property
    def where(self) -> str:
        """Name for error lines."""
        return f"{self.source}, split {self.split!r}"

    def parts(self, first: int = 0, wanted: Sequence[str] | None = None) -> Iterator["pd.DataFrame"]:
        """Read the rows from a number on to the last, in tables of some rows each.

        Args:
            first: number of the first row.
            wanted: columns that are used, as of ``table_parts``.

        Raises:
            UsageError: no such split, or a file that cannot be read, or only as a whole.
        """
        if self.source.folder is None:
            return stream_hub_tables(self.source, self.split, first)
        formats = STREAM_FORMATS if self.text_files else (*FORMATS, *PACKED_FORMATS)
        return self._file_parts(require_files(self.source.folder, self.split, formats), first, wanted)

    def _file_parts(self, files: Sequence[Path], first: int, wanted: Sequence[str] | None) -> Iterator["pd.DataFrame"]:
        row = 0
        for file in files:
            rows = count_parquet_rows(file) if file_format(file) == "parquet" else 0
            if rows and row + rows <= first:
                row += rows
                continue
            try:
                for table in table_parts(file, wanted):
                    if row + len(table) > first:
                        yield table.iloc[max(0, first - row) :]
                    row += len(table)
            except NotInParts:
                raise UsageError(
                    f"{str(file)!r} can only be read as a whole, and data.streaming=true reads parts: save it as "
                    f"parquet, or as jsonl or csv in UTF-8"
                ) from None

    def read(self, rows: int) -> "pd.DataFrame":
        """Read the first rows, or all if there are fewer."""
        return RowReader(self).read(rows)


class RowReader:
    """Reads a stream some rows at a time, from any row on.

    Attributes:
        row: number of the row that is read next.
        stopped: set in another thread to end a read, which raises.
    """

    def __init__(self, stream: RowStream, wanted: Sequence[str] | None = None) -> None:
        """Begin before the first row; ``wanted`` are the columns that are used, all if None."""
        self._stream, self._wanted, self.stopped = stream, wanted, False
        self.seek(0)

    def seek(self, row: int) -> None:
        """Go to a row, by opening the stream again."""
        self.row, self._parts = row, self._stream.parts(row, self._wanted)
        self._rest: pd.DataFrame | None = None

    def read(self, rows: int) -> "pd.DataFrame":
        """Read the next rows; fewer if the stream ends before."""
        read = 0
        taken: list[pd.DataFrame] = []
        while read < rows:
            if self.stopped:
                raise CancelledError
            table = self._rest if self._rest is not None else next(self._parts, None)
            if table is None:
                break
            taken.append(table.iloc[: rows - read])
            self._rest = table.iloc[rows - read :] if len(table) > rows - read else None
            read += len(taken[-1])
        self.row += read
        return _join(taken)


def _join(tables: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    """Put the rows of tables one after the other; cells of a column that one of them lacks are None."""
    names = dict.fromkeys(str(name) for table in tables for name in table.columns)
    return from_columns({name: [cell for table in tables for cell in _cells(table, name)] for name in names})


def _cells(table: "pd.DataFrame", column: str) -> list[Any]:
    return column_cells(table, column) if column in table.columns else [None] * len(table)
