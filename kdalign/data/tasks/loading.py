"""Load a split from a folder of files or from the hub, and check it before any model is loaded."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdalign.data.delimited import NotInParts
from kdalign.data.media.folders import holds_media, read_folder
from kdalign.data.split_files import available_splits, require_files, split_files
from kdalign.data.tables import FORMATS, TEXT_FORMATS, file_format, read_table
from kdalign.data.tasks.columns import check_column, is_blank, is_missing, read_texts
from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.hub import hub_splits, load_hub_table
from kdalign.data.tasks.labels import read_labels
from kdalign.data.tasks.large_splits import find_large_split, map_labelled
from kdalign.data.tasks.media_columns import read_media
from kdalign.data.tasks.row_stream import STREAM_FORMATS, RowStream
from kdalign.data.tasks.task import ClassificationTask, DataSource
from kdalign.errors import Unwritten, UsageError

if TYPE_CHECKING:
    import pandas as pd


def load_examples(task: ClassificationTask, split: str) -> Examples:
    """Load and check a split.

    Raises:
        UsageError: no such split, file of another format, missing column, row without text or image, label outside the
            task's set, or no rows at all.
    """
    large = find_large_split(task.source, split, FORMATS) if task.modality == "text" else None
    if large is not None:
        with suppress(NotInParts, Unwritten):  # without a cache, rows are held in memory
            return map_labelled(task, large)
    table = load_table(task.source, split)
    where = f"{task.source}, split {split!r}"
    texts = _read_texts(task, table, where, table_folder(task.source, split) if task.modality != "text" else None)
    return Examples(
        split=split,
        texts=texts,
        labels=read_labels(task, table, where),
        blank=_count_blank(texts, where),
        origins=read_origins(table, task.source, where, needed=split == task.train),
    )


def read_origins(table: "pd.DataFrame", source: DataSource, where: str, *, needed: bool = True) -> tuple[str, ...]:
    """Read the column that says where each row is from; empty if none is named, or if it is not there and not needed.

    Raises:
        UsageError: no such column, or a row without a value.
    """
    if source.by is None or (not needed and source.by not in table.columns):
        return ()
    check_column(table, source.by, "teachers.by", where)
    values = table[source.by].tolist()
    for row, value in enumerate(values):
        if is_missing(value):
            raise UsageError(f"{where}: row {row} has no value in column {source.by!r}, which says who teaches it")
    return tuple(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values)


def load_unlabelled(task: ClassificationTask, place: Path) -> Examples:
    """Load texts or images of a task's columns from a file, or from the split ``train`` of a folder, without labels.

    A ``.txt`` file holds one text per line, for tasks of single texts; blank lines are skipped and counted. A folder
    may hold the images themselves.

    Raises:
        UsageError: nothing there, another format, a missing column, a row without text, or no rows at all.
    """
    files = [place]
    if place.is_dir():
        own = place / task.name if (place / task.name).is_dir() else place
        files = split_files(own, "train", TEXT_FORMATS)
        if not files and task.modality != "text" and holds_media(own):
            files = [own]
        if not files:
            has = available_splits(own, TEXT_FORMATS)
            raise UsageError(
                f"--unlabelled {str(place)!r}: no file train.{chr(124).join(TEXT_FORMATS)} there "
                f"(it has: {', '.join(has) or 'none of these formats'}); a file can be given, too"
            )
    elif not place.exists():
        raise UsageError(f"--unlabelled {str(place)!r}: no such folder or file (accepted: one of these, or rest)")
    elif file_format(place) not in TEXT_FORMATS:
        raise UsageError(f"--unlabelled {str(place)!r}: a file of another format (accepted: {', '.join(TEXT_FORMATS)})")
    table, passed_over = _read_all(files), 0
    if file_format(files[0]) == "txt" and task.modality == "text":
        if len(task.columns) > 1:
            raise UsageError(
                f"--unlabelled {str(files[0])!r} holds one text per line, and task {task.name!r} reads pairs "
                f"({', '.join(task.columns)}): give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            )
        blank = [is_blank(line) for line in table["text"]]
        table, passed_over = table[[not one for one in blank]].set_axis(list(task.columns), axis=1), sum(blank)
    if files[0].is_dir():
        table = table.rename(columns={task.modality: task.columns[0]})
    where = str(files[0])
    texts = _read_texts(task, table, where, _folder_of(files))
    origins = read_origins(table, task.source, where)
    return Examples("unlabelled", texts, None, passed_over, _count_blank(texts, where), origins=origins)


def _read_texts(
    task: ClassificationTask, table: "pd.DataFrame", where: str, folder: Path | None
) -> tuple[Sequence[str], ...]:
    """Read the texts or images of a task's columns; no cell may be missing. Paths are relative to ``folder``."""
    if len(table) == 0:
        raise UsageError(f"{where} has no rows")
    for column in task.columns:
        check_column(table, column, f"task {task.name!r}", where)
    if task.modality != "text":
        return (read_media(table, task.columns[0], task.modality, where, folder),)
    return tuple(read_texts(table, column, where) for column in task.columns)


def _count_blank(texts: Sequence[Sequence[str]], where: str) -> int:
    """Count rows with a blank text; they stay, since rows are known by their number.

    Raises:
        UsageError: all rows are blank.
    """
    blank = [sum(map(is_blank, row)) for row in zip(*texts, strict=True)]
    if all(count == len(texts) for count in blank):
        raise UsageError(f"{where} has no text: every row has white space or control characters alone")
    return sum(count > 0 for count in blank)


def load_table(source: DataSource, split: str, text_files: bool = False) -> "pd.DataFrame":
    """Load a split as a table.

    Args:
        source: a folder, or a data set on the hub.
        split: its name.
        text_files: accept ``.txt`` files, too.

    Of a split that is read as a stream, these are the first rows. Other splits of such a data set on the hub are
    streamed, too, and read to their end: loading one would download all of them.
    """
    if split == source.streamed:
        return RowStream(source, split, text_files).read(source.held)
    if source.folder is None:
        return RowStream(source, split).read(sys.maxsize) if source.streamed else load_hub_table(source, split)
    return _read_all(require_files(source.folder, split, TEXT_FORMATS if text_files else FORMATS))


def table_folder(source: DataSource, split: str) -> Path | None:
    """Return the folder to which paths in a split are relative; None for a data set on the hub."""
    if source.folder is None:
        return None
    return _folder_of(require_files(source.folder, split, TEXT_FORMATS))


def _folder_of(files: Sequence[Path]) -> Path:
    """Return the folder of a split's files, or the folder that the split is."""
    return files[0] if files[0].is_dir() else files[0].parent


def split_exists(source: DataSource, split: str) -> bool:
    """Return whether a source has a split."""
    if source.folder is not None:
        formats = STREAM_FORMATS if split == source.streamed else TEXT_FORMATS
        return bool(split_files(source.folder, split, formats))
    return split in hub_splits(source)


def _read_all(files: Sequence[Path]) -> "pd.DataFrame":
    """Read the files of a split, or the folder that it is, into one table.

    Raises:
        UsageError: a file cannot be read, or has other columns than the first.
    """
    import pandas as pd

    tables = [read_file(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        check_same_columns(file, table, files[0], tables[0])
    return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)


def read_file(file: Path) -> "pd.DataFrame":
    """Read a file of a split, or the folder that it is, into a table.

    Raises:
        UsageError: it cannot be read.
    """
    return read_folder(file) if file.is_dir() else read_table(file)


def check_same_columns(file: Path, table: "pd.DataFrame", first: Path, first_table: "pd.DataFrame") -> None:
    """Refuse a file of a split that has other columns than its first file."""
    if set(table.columns) != set(first_table.columns):
        raise UsageError(
            f"{str(file)!r} has the columns {', '.join(table.columns)}, and {first.name!r} of the same split "
            f"{', '.join(first_table.columns)}"
        )
