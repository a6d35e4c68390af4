"""Read csv, tsv, jsonl, parquet and txt files as tables, with every cell as written."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdalign.data.delimited import read_delimited
from kdalign.errors import UsageError, library_errors
from kdalign.files import check_regular, decode, read_bytes, unique_keys

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FORMATS = ("parquet", "csv", "tsv", "jsonl")
TEXT_FORMATS = (*FORMATS, "txt")
"""Formats of text without labels; every line of a .txt file that is not blank is a document."""
PACKED_FORMATS = ("csv.gz", "tsv.gz", "jsonl.gz", "txt.gz")
"""Formats of text that gzip has packed, of splits that are read as streams."""
DELIMITERS: Mapping[str, str] = {"csv": ",", "tsv": "\t"}


def file_format(file: Path) -> str:
    """Return the format by a file's ending, in lower case; that of a packed text has two parts."""
    packed = "".join(file.suffixes[-2:]).lstrip(".").lower()
    return packed if packed in PACKED_FORMATS else file.suffix.lstrip(".").lower()


def read_table(file: Path) -> "pd.DataFrame":
    """Read a file as a table.

    Cells of csv, tsv and txt are text or None; cells of jsonl are JSON values; cells of parquet are text, numbers,
    arrays, dictionaries or None.

    Raises:
        UsageError: the file cannot be read, is not what its name says, or has two columns of one name.
    """
    match file_format(file):
        case "parquet":
            return _read_parquet(file)
        case "csv" | "tsv" as kind:
            names, columns = read_delimited(_read_text(file), DELIMITERS[kind], repr(str(file)))
            check_names(names, str(file))
            return from_columns(dict(zip(names, columns, strict=True)))
        case "txt":
            return from_columns({"text": split_lines(_read_text(file))})
        case _:
            return _read_jsonl(file)


def _read_text(file: Path) -> str:
    """Read a text file of any size that fits into memory."""
    data = read_bytes(file, largest=None)
    text = decode(data, repr(str(file)))
    check_beginning(text, file)
    return text


def check_beginning(text: str, file: Path) -> None:
    """Refuse a text whose beginning shows another encoding.

    Raises:
        UsageError: a quarter of its first characters are null.
    """
    beginning = text[:4096]
    if 4 * beginning.count("\0") > len(beginning):
        raise UsageError(
            f"{str(file)!r} is not UTF-8 (it looks like UTF-16 without a byte order mark); save it as UTF-8"
        )


def split_lines(text: str) -> list[str]:
    """Split a text into lines; a line end at its end begins no further line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def from_columns(columns: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    """Make a table of cells as they are; pandas by itself would turn whole numbers next to None into floats."""
    import pandas as pd

    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse two columns of one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{where!r} has {names.count(twice[0])} columns named {twice[0]!r}: rename all but one, or leave them out"
        )


_MOST_CELLS = 10**7
"""Largest number of cells of a table that is mostly empty: rows with a key of their own each would fill memory."""


def _read_jsonl(file: Path) -> "pd.DataFrame":
    rows = list(parse_jsonl(split_lines(_read_text(file)), file))
    names = dict.fromkeys(name for row in rows for name in row)
    if mostly_empty(rows, len(names)):
        raise UsageError(f"{str(file)!r} has {len(names):,} different keys in {len(rows):,} rows, hardly any in common")
    return from_columns({name: [row.get(name) for row in rows] for name in names})


def mostly_empty(rows: Sequence[Mapping[str, Any]], names: int) -> bool:
    """Return whether a table of these rows and this number of columns would be large, with hardly any cell filled."""
    return len(rows) * names > max(_MOST_CELLS, 100 * sum(map(len, rows)))


def parse_jsonl(lines: Iterable[str], file: Path, first: int = 1) -> Iterator[dict[str, Any]]:
    """Parse lines of a jsonl file; blank ones are skipped.

    Args:
        lines: lines of the file, without their ends.
        file: for error lines.
        first: number of the first line.

    Raises:
        UsageError: a line that is no object, or not JSON.
    """
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except RecursionError:
            raise UsageError(f"{str(file)!r} is not a jsonl file: line {number}: nested too deeply") from None
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            more = "; a line is an object, and this file begins a list" if line.lstrip()[:1] == "[" else ""
            raise UsageError(f"{str(file)!r} is not a jsonl file: line {number}: {reason}{more}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{str(file)!r} is not a jsonl file: line {number} is not an object with keys")
        yield row


def _read_parquet(file: Path) -> "pd.DataFrame":
    import pyarrow.parquet as pq

    check_regular(file)
    failure = f"{str(file)!r} is not a parquet file"
    with library_errors(failure), file.open("rb") as opened:
        table = pq.ParquetFile(opened).read()
    return from_arrow(table, str(file))


def class_names(file: Path, column: str) -> tuple[str, ...]:
    """Return the names of a column's classes that ``datasets`` wrote into a parquet file's metadata; empty if none.

    Raises:
        UsageError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    check_regular(file)
    with library_errors(f"{str(file)!r} is not a parquet file"):
        metadata = pq.read_schema(file).metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def from_arrow(table: "pa.Table", where: str, first: int = 0) -> "pd.DataFrame":
    """Convert an Arrow table.

    Every text type becomes text; an index that pandas stored becomes a column if it has a name.

    Args:
        table: Arrow table of a file or a data set.
        where: its source, for error lines.
        first: number of its first row there.

    Raises:
        UsageError: two columns of one name, or text that is not UTF-8.
    """
    import pandas as pd
    import pyarrow as pa

    check_names(table.column_names, where)
    columns: dict[str, pd.Series[Any]] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        if field.name.startswith("__index_level_"):
            continue
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            column = column.cast(kind)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            columns[field.name] = pd.Series(_strings(column, field.name, where, first), dtype=object)
        else:
            with library_errors(f"cannot read column {field.name!r} of {where!r}"):
                columns[field.name] = column.to_pandas().reset_index(drop=True)
    return pd.DataFrame(columns)


def _strings(column: "pa.ChunkedArray", name: str, where: str, first: int) -> list[str | None]:
    try:
        found: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:
        row = next(row for row in range(len(column)) if not _is_text(column[row]))
        raise UsageError(f"{where}: row {first + row} has bytes in column {name!r} that are not UTF-8") from None
    return found


def _is_text(cell: Any) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True
