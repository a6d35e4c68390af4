"""Splits in large files: read in parts, once, into the cache, from which texts and labels are mapped into memory."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.delimited import NotInParts
from kdalign.data.split_files import split_files
from kdalign.data.table_parts import table_parts
from kdalign.data.tables import file_format
from kdalign.data.tasks.columns import check_column, column_cells, is_blank, read_texts
from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.labels import LabelCells, read_labels
from kdalign.data.tasks.task import ClassificationTask, DataSource
from kdalign.data.text_rows import TextDraft, TextRows
from kdalign.errors import UsageError
from kdalign.files import sha256
from kdalign.result_cache import Arrays, Draft, find_result, release_pages

if TYPE_CHECKING:
    import pandas as pd

LARGE = 32 * 2**20
"""Bytes of a split's files from which on it is read in parts: smaller ones are read as soon as a cache's."""
_LABELS = 1 << 20
"""Labels that are converted together."""


@dataclass(frozen=True)
class LargeSplit:
    """A split in large files.

    Attributes:
        source: the folder.
        split: its name.
        files: its files, in order.
    """

    source: DataSource
    split: str
    files: tuple[Path, ...]

    @property
    def where(self) -> str:
        """Name for error lines."""
        return f"{self.source}, split {self.split!r}"

    def parts(self, wanted: Sequence[str] | None = None) -> Iterator[tuple[int, "pd.DataFrame"]]:
        """Read the rows in tables of some of them, each with the number of its first row.

        Args:
            wanted: columns, as of ``table_parts``.

        Raises:
            UsageError: a file cannot be read.
            NotInParts: the split can only be read as a whole, as one whose parts have different columns.
        """
        first, names = 0, set[str]()
        for file in self.files:
            for table in table_parts(file, wanted):
                names = names or set(table.columns)
                if set(table.columns) != names:
                    raise NotInParts
                if len(table):
                    yield first, table
                first += len(table)

    def keep(self, content: Mapping[str, object], write: Callable[[Draft], Mapping[str, int]]) -> Arrays:
        """Return what ``write`` makes of the rows, from the cache if it is there.

        Args:
            content: everything that decides it, beside the bytes of the files.
            write: writes arrays, and returns numbers that are kept with them.

        Raises:
            UsageError: a row that cannot be used, or a file that changes while it is read.
            NotInParts: the split can only be read as a whole.
            Unwritten: the cache's folder cannot be written.
        """
        before = self._state()
        kept = find_result("texts", {"files": [(file_format(file), sha256(file)) for file in self.files], **content})

        def write_all(draft: Draft) -> None:
            facts = write(draft)
            draft.append("facts", np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8))
            if self._state() != before:
                raise UsageError(f"{self.where}: its files changed while they were read")

        known = kept.keep_in_parts(write_all)
        if known is None:  # another process has made room
            raise NotInParts
        return known

    def _state(self) -> list[tuple[int, int]]:
        return [(found.st_size, found.st_mtime_ns) for found in map(Path.stat, self.files)]


def find_large_split(source: DataSource, split: str, formats: Sequence[str]) -> LargeSplit | None:
    """Find a split whose files are large.

    None for others, for rows that are told apart by where they are from, and for streams.

    Raises:
        UsageError: several files could be the split, or shards are missing.
    """
    if source.folder is None or source.by is not None or split == source.streamed or not source.folder.is_dir():
        return None
    files = split_files(source.folder, split, formats)
    if sum(file.stat().st_size for file in files) < LARGE:
        return None
    return LargeSplit(source, split, tuple(files))


def map_labelled(task: ClassificationTask, large: LargeSplit) -> Examples:
    """Load and check a split with labels, as ``loading.load_examples`` does.

    Raises:
        UsageError: as of ``loading.load_examples``.
        NotInParts: the split can only be read as a whole.
        Unwritten: the cache's folder cannot be written.
    """

    def write(draft: Draft) -> dict[str, int]:
        columns = [TextDraft(draft, str(number)) for number in range(len(task.columns))]
        labels: _LabelDraft | None = None
        rows = blank = without = 0
        for first, table in large.parts([*task.columns, task.label]):
            for column in task.columns:
                check_column(table, column, f"task {task.name!r}", large.where)
            texts = [read_texts(table, column, large.where, first=first) for column in task.columns]
            for drafted, column_texts in zip(columns, texts, strict=True):
                drafted.append(column_texts)
            blanks = [sum(map(is_blank, row)) for row in zip(*texts, strict=True)]
            blank += sum(count > 0 for count in blanks)
            without += sum(count == len(texts) for count in blanks)
            if labels is None and (task.label in table.columns or read_labels(task, table, large.where) is not None):
                labels = _LabelDraft(task, large, draft)
            if labels is not None:
                labels.append(column_cells(table, task.label))
            rows += len(table)
        if not rows:
            raise UsageError(f"{large.where} has no rows")
        if without == rows:
            raise UsageError(f"{large.where} has no text: every row has white space or control characters alone")
        if labels is not None:
            labels.finish()
        return {"blank": blank}

    content = {"columns": task.columns, "label": task.label, "labels": task.labels}
    return mapped_examples(large, large.keep(content, write), len(task.columns))


class _LabelDraft:
    """Labels of a split that is read in parts: as numbers of different cells, until all of these are known."""

    def __init__(self, task: ClassificationTask, large: LargeSplit, draft: Draft) -> None:
        self._task, self._large, self._draft, self._cells = task, large, draft, LabelCells(task)

    def append(self, cells: Sequence[Any]) -> None:
        """Append the cells of a part."""
        self._draft.append("labels" if self._task.regression else "cells", self._cells.add(cells))

    def finish(self) -> None:
        """Write the labels, or none if no row has one.

        Raises:
            UsageError: the first cell that is no label.
        """
        try:
            labels = self._read(self._cells.cells)
        except UsageError:  # of all cells, for the numbers of their rows
            parts = self._large.parts([*self._task.columns, self._task.label])
            self._read([cell for _, table in parts for cell in column_cells(table, self._task.label)])
            raise
        if self._task.regression:
            if labels is None:
                self._draft.remove("labels")
            return
        numbers = self._draft.read("cells")
        for start in range(0, len(numbers) if labels is not None else 0, _LABELS):
            assert labels is not None, "there are none to write"
            self._draft.append("labels", labels[numbers[start : start + _LABELS]])
        release_pages(numbers)
        self._draft.remove("cells")

    def _read(self, cells: list[Any]) -> np.ndarray[Any, Any] | None:
        import pandas as pd

        table = pd.DataFrame({self._task.label: pd.Series(cells, dtype=object)})
        return read_labels(self._task, table, self._large.where)


def mapped_examples(large: LargeSplit, arrays: Arrays, columns: int) -> Examples:
    """Make examples of the arrays of a split."""
    texts = tuple(TextRows(arrays[f"texts/{number}"], arrays[f"starts/{number}"]) for number in range(columns))
    return Examples(large.split, texts, arrays.get("labels"), **json.loads(arrays["facts"].tobytes()))
