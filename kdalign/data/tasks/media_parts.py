"""Splits of sounds or images that are read in parts, of which one is in memory, and written so."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, overload

from kdalign.data.media.rows import MediaKind, MediaRows, media_digest
from kdalign.data.split_files import require_files
from kdalign.data.table_parts import PARQUET_BYTES, table_parts
from kdalign.data.tables import TEXT_FORMATS, file_format
from kdalign.data.tasks.columns import check_column
from kdalign.data.tasks.hub import hub_table_parts
from kdalign.data.tasks.loading import check_same_columns, load_table, read_file, table_folder
from kdalign.data.tasks.media_columns import read_media
from kdalign.data.tasks.task import DataSource
from kdalign.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


def split_parts(source: DataSource, split: str, wanted: Sequence[str] | None = None) -> Iterator["pd.DataFrame"]:
    """Read a split in tables of some rows: parquet files and data sets on the hub, whose cells may hold their content.

    Other files and folders, whose cells name files of sounds or images, are read one by one.

    Args:
        source: a folder, or a data set on the hub.
        split: its name.
        wanted: columns that are used, all if None; others may be read, too.

    Raises:
        UsageError: as of ``loading.load_table``.
    """
    if source.streamed:
        yield load_table(source, split, text_files=True)
    elif source.folder is None:
        yield from hub_table_parts(source, split, wanted)
    else:
        files = require_files(source.folder, split, TEXT_FORMATS)
        first: pd.DataFrame | None = None
        for file in files:
            for table in table_parts(file, wanted) if file_format(file) == "parquet" else [read_file(file)]:
                first = table.iloc[:0] if first is None else first
                check_same_columns(file, table, files[0], first)
                yield table


class PartCells(Sequence[bytes | Path]):
    """Encoded cells of a split that is read in parts, of which one is in memory: cheap in the order of rows.

    For a row before that part, the split is read from its beginning again.
    """

    def __init__(self, parts: Callable[[], Iterator[MediaRows]], digests: Sequence[str], where: str) -> None:
        """Begin before the first part.

        Args:
            parts: reads the split from its beginning.
            digests: ``media_digest`` of each row when the split was loaded.
            where: name of the split, for error lines.
        """
        self._parts, self._digests, self._where = parts, digests, where
        self._seek_beginning()

    def _seek_beginning(self) -> None:
        self._left = self._parts()
        self._first, self._cells = 0, tuple[bytes | Path, ...]()

    def __len__(self) -> int:
        return len(self._digests)

    @overload
    def __getitem__(self, row: int) -> bytes | Path: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[bytes | Path]: ...

    def __getitem__(self, row: int | slice) -> bytes | Path | Sequence[bytes | Path]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        if row < self._first:
            self._seek_beginning()
        while row >= self._first + len(self._cells):
            self._first, self._cells = self._first + len(self._cells), ()
            part = next(self._left, None)
            if part is None:
                raise self._changed()
            self._cells = tuple(part.cells)
        cell = self._cells[row - self._first]
        if isinstance(cell, bytes) and media_digest(cell) != self._digests[row]:
            raise self._changed()
        return cell

    def _changed(self) -> UsageError:
        return UsageError(f"{self._where} is not as it was when it was loaded: its files changed")


@dataclass(frozen=True)
class MediaTable:
    """A split of sounds or images: they are read in parts, and its other columns are in memory.

    Attributes:
        column: column of sounds or images.
        place: its number among all columns.
        media: its rows.
        others: the other columns.
    """

    column: str
    place: int
    media: MediaRows
    others: "pd.DataFrame"


def read_media_table(
    source: DataSource, split: str, column: str, modality: MediaKind, what: str, most: int | None = None
) -> MediaTable:
    """Read a split of sounds or images, and check the header of each.

    Args:
        source: a folder, or a data set on the hub.
        split: its name.
        column: column of sounds or images.
        modality: ``audio`` or ``image``.
        what: user of the column, for error lines, such as ``task 'asr'``.
        most: rows that are read, the first; all if None.

    Raises:
        UsageError: no rows, no such column, or as of ``media_columns.read_media``.
    """
    import pandas as pd

    where = f"{source}, split {split!r}"
    read = partial(_read_parts, source, split, column, modality, what)
    others, place = list[pd.DataFrame](), 0
    cells, names, digests = list[bytes | Path](), list[str](), list[str]()
    for table, rows in read():
        left = len(table) if most is None else most - len(names)
        others.append(table.iloc[:left].drop(columns=column).copy())  # a view would keep the sounds
        place = list(table.columns).index(column)
        names += rows.names[:left]
        digests += rows.digests[:left]
        cells += [cell for cell in rows.cells[:left] if isinstance(cell, Path)]
        if most is not None and len(names) >= most:
            break
    if not names:
        raise UsageError(f"{where} has no rows")
    held = cells if len(cells) == len(names) else None
    in_parts = PartCells(lambda: (rows for _, rows in read([column])), digests, where)
    media = MediaRows(modality, in_parts if held is None else held, names, digests)
    return MediaTable(column, place, media, pd.concat(others, ignore_index=True))


def _read_parts(
    source: DataSource, split: str, column: str, modality: MediaKind, what: str, wanted: Sequence[str] | None = None
) -> Iterator[tuple["pd.DataFrame", MediaRows]]:
    """Read the parts of a split, each with its sounds or images."""
    where, folder, first = f"{source}, split {split!r}", table_folder(source, split), 0
    for table in split_parts(source, split, wanted):
        if len(table):
            check_column(table, column, what, where)
            yield table, read_media(table, column, modality, where, folder, first)
        first += len(table)


def write_media_table(file: Path, table: MediaTable, others: "pd.DataFrame", rows: Sequence[int]) -> None:
    """Write rows of a split to a parquet file, each sound or image as its bytes, some at a time.

    Args:
        file: its path.
        table: split of which the sounds or images are.
        others: the other columns, one row for each of ``rows``.
        rows: number of each row's sound or image.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pa.Table.from_pandas(others, preserve_index=False).replace_schema_metadata(None)
    media = pa.field(table.column, pa.binary())
    place = min(table.place, len(whole.schema))
    with pq.ParquetWriter(file, whole.schema.insert(place, media), use_dictionary=False) as writer:
        for first, cells in _group_by_bytes(table.media, rows):
            columns: list[pa.ChunkedArray | pa.Array] = [each.slice(first, len(cells)) for each in whole.columns]
            columns.insert(place, pa.array(cells, pa.binary()))
            writer.write_table(pa.Table.from_arrays(columns, schema=writer.schema))


def _group_by_bytes(media: MediaRows, rows: Sequence[int]) -> Iterator[tuple[int, list[bytes]]]:
    """Read sounds or images in groups, each with the place of its first in ``rows``."""
    first, cells, size = 0, list[bytes](), 0
    for place, row in enumerate(rows):
        cells.append(media.read(row))
        size += len(cells[-1])
        if size >= PARQUET_BYTES:
            yield first, cells
            first, cells, size = place + 1, [], 0
    if cells:
        yield first, cells
