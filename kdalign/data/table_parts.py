"""Read csv, tsv, jsonl, parquet and txt files of any size as tables of some rows each, with every cell as written."""

import codecs
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from kdalign.data.delimited import NotInParts, count_lines, read_delimited_parts
from kdalign.data.tables import (
    DELIMITERS,
    check_beginning,
    check_names,
    file_format,
    from_arrow,
    from_columns,
    mostly_empty,
    parse_jsonl,
    split_lines,
)
from kdalign.errors import UsageError, cause_of, library_errors
from kdalign.files import check_regular, decode

if TYPE_CHECKING:
    import pandas as pd

ROWS = 20_000
"""Rows of a part of a parquet file."""
PARQUET_BYTES = 32 * 2**20
"""Bytes of a part of a parquet file with long cells, such as sounds, on average."""
BYTES = 4 * 2**20
"""Bytes of a part of a text file, up to the end of a line."""

LONGEST_PACKED_LINE = 256 * 2**20
"""Limit of bytes of a line that gzip has packed: kilobytes of it can stand for gigabytes."""


def table_parts(file: Path, wanted: Sequence[str] | None = None) -> Iterator["pd.DataFrame"]:
    """Read a file as tables of some rows each: together the rows that ``tables.read_table`` reads.

    Args:
        file: its path.
        wanted: columns that are used, all if None; of a parquet file that has them no others are read.

    Raises:
        UsageError: the file cannot be read, is not what its name says, or has two columns of one name.
        NotInParts: it can only be read as a whole.
    """
    where = repr(str(file))
    match file_format(file).removesuffix(".gz"):
        case "parquet":
            yield from _parquet_parts(file, wanted)
        case "csv" | "tsv" as kind:
            for names, columns in read_delimited_parts(partial(_text_parts, file), DELIMITERS[kind], where):
                check_names(names, str(file))
                yield from_columns(dict(zip(names, columns, strict=True)))
        case "txt":
            for text in _text_parts(file):
                yield from_columns({"text": split_lines(text)})
        case _:
            line = 1
            for text in _text_parts(file):
                rows = list(parse_jsonl(split_lines(text), file, line))
                names = list(dict.fromkeys(name for row in rows for name in row))
                if rows and (not names or mostly_empty(rows, len(names))):
                    raise NotInParts
                if rows:
                    yield from_columns({name: [row.get(name) for row in rows] for name in names})
                line += count_lines(text)


def count_parquet_rows(file: Path) -> int:
    """Count the rows of a parquet file, which its end says.

    Raises:
        UsageError: it cannot be read.
    """
    import pyarrow.parquet as pq

    check_regular(file)
    with library_errors(f"{str(file)!r} is not a parquet file"):
        rows: int = pq.read_metadata(file).num_rows
    return rows


def _parquet_parts(file: Path, wanted: Sequence[str] | None) -> Iterator["pd.DataFrame"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(file)
    failure = f"{str(file)!r} is not a parquet file"
    with file.open("rb") as opened:
        with library_errors(failure):
            parquet = pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
            names = parquet.schema_arrow.names
            check_names(names, str(file))
            if wanted is not None and (not set(wanted) <= set(names) or any("." in name for name in wanted)):
                wanted = None  # which "a.b" would be a part of column "a"
            rows = _rows_of_part(parquet.metadata)
            batches = parquet.iter_batches(rows, columns=None if wanted is None else list(wanted))
        first = 0
        while True:
            with library_errors(failure):
                batch: Any = next(batches, None)
            if batch is None:
                return
            yield from_arrow(pa.Table.from_batches([batch]), str(file), first)
            first += len(batch)


def _rows_of_part(metadata: Any) -> int:
    """Return the rows that are read together: fewer than ``ROWS`` where they are long on average."""
    size = sum(int(metadata.row_group(number).total_byte_size) for number in range(metadata.num_row_groups))
    return max(1, min(ROWS, PARQUET_BYTES * int(metadata.num_rows) // max(size, 1)))


def _text_parts(file: Path) -> Iterator[str]:
    """Read a text file in UTF-8, which gzip may have packed, in parts that end with a line."""
    check_regular(file)
    where, line, is_packed = repr(str(file)), 1, file_format(file).endswith(".gz")
    with _open(file) as opened, _reading_errors(where):
        data = opened.read(BYTES)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
            raise NotInParts
        begun = False
        while data:
            end = data.rfind(b"\n") + 1
            more = opened.read(max(BYTES, len(data)) if not end else BYTES)
            if more and not end:  # a line as long as that
                if is_packed and len(data) > LONGEST_PACKED_LINE:
                    raise UsageError(
                        f"{where}, line {line}: more than {LONGEST_PACKED_LINE:,} bytes in one line; unpack it, or "
                        f"write a row a line"
                    )
                data += more
                continue
            part, rest = (data[:end], data[end:]) if more else (data, b"")
            text = _decode(part, where, line)
            if not begun:
                check_beginning(text, file)
                begun = True
            yield text
            line += part.count(b"\n")
            data = rest + more


def _open(file: Path) -> BinaryIO:
    opened = gzip.open(file) if file_format(file).endswith(".gz") else file.open("rb")
    return cast(BinaryIO, opened)


@contextmanager
def _reading_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        cause = "it ends too early" if isinstance(error, EOFError) else cause_of(error)
        raise UsageError(f"{where} cannot be unpacked: {cause}") from None
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {cause_of(error)}") from None


def _decode(part: bytes, where: str, line: int) -> str:
    """Decode a part of a file that begins on a line of it, by UTF-8."""
    if line == 1:
        return decode(part, where)
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        row = line + part[: error.start].count(b"\n")
        byte = f"byte {part[error.start]:#04x}: {error.reason}"
        raise UsageError(f"{where}, line {row}: not UTF-8 ({byte}); save it as UTF-8") from None
