"""Segments of a split that is read as a stream: a fixed number of its rows after another, pass after pass.

A pass reads every row once. Its last segment has the rows that are left, and a segment never has rows of two passes, so
that a pass of a split that does not change is always divided alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.tables import from_columns
from kdalign.data.tasks.columns import check_column, column_cells, is_blank, read_texts
from kdalign.data.tasks.conversations import TOOLS
from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.labels import LabelCells, read_labels
from kdalign.data.tasks.language import LanguageTask, read_rows, text_columns
from kdalign.data.tasks.row_stream import RowReader, RowStream
from kdalign.data.tasks.task import ClassificationTask
from kdalign.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SegmentPlace:
    """Place of a segment in its stream, and what was read up to its end.

    Attributes:
        number: number of the segment, from 0, over all passes; without those that have nothing to train on.
        passes: number of the pass, from 0.
        row: number of its first row in the pass.
        rows: number of its rows.
        digest: fingerprint of its texts and labels.
        read: rows read in all passes.
        examples: examples read in the first pass, as are the next ones.
        tokens: tokens of these.
        truncated: examples that were cut.
        passed_over: documents without a word, and conversations without room for an answer, which were left out.
        blank: rows with a blank text, which are kept.
    """

    number: int
    passes: int
    row: int
    rows: int
    digest: str
    read: int
    examples: int = 0
    tokens: int = 0
    truncated: int = 0
    passed_over: int = 0
    blank: int = 0

    def counting(self, **more: int) -> "SegmentPlace":
        """Add numbers of the first pass, which later ones repeat."""
        counts: dict[str, Any] = {name: getattr(self, name) + n for name, n in more.items()}
        return self if self.passes else replace(self, **counts)

    @property
    def end(self) -> int:
        """Number of the row after its last one."""
        return self.row + self.rows


def first_place(task: ClassificationTask | LanguageTask, train: Examples) -> SegmentPlace:
    """Return the place of the first segment, which loading the streamed split gives."""
    columns = 1
    if isinstance(task, LanguageTask) and task.kind != "chat" and not task.pairs:
        columns = len(task.columns)  # each cell is a document
    rows = (len(train) + train.passed_over) // columns
    return SegmentPlace(0, 0, 0, rows, train.fingerprint(), rows).counting(**_counts(train))


def _counts(examples: Examples) -> dict[str, int]:
    return {"examples": len(examples), "passed_over": examples.passed_over, "blank": examples.blank}


class SegmentReader:
    """Reads the segments of a task's streamed training split one after the other."""

    def __init__(self, task: ClassificationTask | LanguageTask, first: SegmentPlace) -> None:
        """Begin after the first segment, which is read again, so that later ones are known to go on from it.

        Raises:
            UsageError: its rows are other ones now.
        """
        self._task, self._held = task, task.source.held
        self._stream = RowStream(task.source, task.train, text_files=isinstance(task, LanguageTask))
        self._labels = _SegmentLabels(task, self._stream.where) if isinstance(task, ClassificationTask) else None
        self._rows = RowReader(self._stream, _used_columns(task))
        self.again(first)

    def stop(self) -> None:
        """End what another thread reads, which raises there."""
        self._rows.stopped = True

    def again(self, place: SegmentPlace) -> Examples:
        """Read a segment whose place is known.

        Raises:
            UsageError: its rows are other ones now.
        """
        if place.row != self._rows.row:
            self._rows.seek(place.row)
        examples = self._examples(self._rows.read(place.rows), place.row)
        if examples.fingerprint() != place.digest:
            raise UsageError(
                f"{self._stream.where}: rows {place.row} to {place.end - 1} are not as they were when the run read "
                f"them: a stream may only grow at its end"
            )
        return examples

    def after(self, place: SegmentPlace) -> tuple[SegmentPlace, Examples]:
        """Read the segment after a place: in the next pass if the place is the last of its own.

        It has its place's number, until it is known to have something to train on.

        Raises:
            UsageError: a row that cannot be used, or no rows any more.
        """
        passes, row = place.passes, place.end
        table = None
        if place.rows == self._held:  # else the pass has ended
            if row != self._rows.row:
                self._rows.seek(row)
            table = self._rows.read(self._held)
        if table is None or not len(table):
            passes, row = passes + 1, 0
            self._rows.seek(0)
            table = self._rows.read(self._held)
        if not len(table):
            raise UsageError(f"{self._stream.where} has no rows any more")
        examples = self._examples(table, row)
        rows, digest = len(table), examples.fingerprint()
        found = replace(place, passes=passes, row=row, rows=rows, digest=digest, read=place.read + rows)
        return found.counting(**_counts(examples)), examples

    def _examples(self, table: "pd.DataFrame", first: int) -> Examples:
        task, where = self._task, self._stream.where
        if isinstance(task, LanguageTask):
            return read_rows(task, task.train, text_columns(task, table, where, first), first)
        for column in task.columns:
            check_column(table, column, f"task {task.name!r}", where)
        texts = tuple(read_texts(table, column, where, first=first) for column in task.columns)
        blank = sum(any(map(is_blank, row)) for row in zip(*texts, strict=True))
        assert self._labels is not None, "classes have labels"
        return Examples(task.train, texts, self._labels.read(table, first), blank=blank)


class _SegmentLabels:
    """Labels of segments, read as those of the whole split would be: by all the cells that were seen."""

    def __init__(self, task: ClassificationTask, where: str) -> None:
        self._task, self._where, self._cells = task, where, LabelCells(task)

    def read(self, table: "pd.DataFrame", first: int) -> np.ndarray[Any, Any]:
        """Read the labels of rows of which the first has this number.

        Raises:
            UsageError: a row without a label, or with one that is none or written otherwise than those before.
        """
        task = self._task
        labels = read_labels(task, table, self._where, first)
        found = self._cells.add(column_cells(table, task.label)) if task.label in table.columns else None
        scores = found is not None and task.regression and not np.isnan(found).any()  # each may be -1 here
        if found is None or (labels is None and not scores):
            raise UsageError(f"{self._where}: rows {first} to {first + len(table) - 1} have no label in {task.label!r}")
        try:
            seen = read_labels(task, from_columns({task.label: self._cells.cells}), self._where)
        except UsageError:
            raise UsageError(
                f"{self._where}: in rows {first} to {first + len(table) - 1}, labels in {task.label!r} are written "
                f"otherwise than in the rows before"
            ) from None
        if task.regression:
            return found
        assert seen is not None, "labels that were read"
        known: np.ndarray[Any, Any] = seen[found]
        return known


def _used_columns(task: ClassificationTask | LanguageTask) -> Sequence[str]:
    if isinstance(task, ClassificationTask):
        return [*task.columns, task.label]
    return [*task.columns, *task.references, *([TOOLS] if task.kind == "chat" else [])]
