"""A table of models: its columns, cells and rows, and what must be known to read it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdalign.errors import printable, printable_names

PUBLISHED = "published"

SHARED = ("macro", "agreement", "ece", "retained")
"""Columns that stand for whatever a row's tasks are."""


BETTER, WORSE, ALIKE = VERDICTS = ("↑", "↓", "≈")
"""Marks behind a number: better or worse than the row that it is held against, or no evidence of either."""


@dataclass(frozen=True)
class Column:
    """One column: its key, its title, its unit and how it is shown.

    Attributes:
        task: that it is of; empty for what stands for whatever a row's tasks are.
        cost: of what a model costs, not of how good it is.
        training: of them, what it cost to make it.
        detail: a metric whose task has a column of its own, the mean of its metrics.
        published: that only rows which others have published have.
    """

    key: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool = True
    task: str = ""
    cost: bool = False
    training: bool = False
    detail: bool = False
    published: bool = False


@dataclass(frozen=True)
class Cell:
    """One value, with the ends of its 95 % interval where there are any; a reason where there is no value.

    Attributes:
        best: among the students of a column whose rows rank.
        second: the best after those.
        written: how its source writes it, and how it is therefore shown; empty for what was measured.
        called: what its source calls it.
        mark: what must be said beside it, such as ``pseudo``.
        verdict: what a test says of it beside the row that it is held against: one of ``VERDICTS``, or nothing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    best: bool = False
    second: bool = False
    reason: str = ""
    written: str = ""
    called: str = ""
    mark: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """A model, or the mean of one recipe's runs over seeds.

    Attributes:
        kind: ``teacher``, ``student``, ``evaluation``, ``baseline`` for what cost nothing to train, ``difference`` of
            two students, or ``reference`` for what others have published.
        source: where it was published.
        note: what is not known of how a published row was made.
        mark: that stands behind a published row's name and before the note on its source.
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    cells: dict[str, Cell]
    source: str = ""
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class ScoredSplit:
    """The data that a table's scores of one task are computed on.

    Attributes:
        n: number of examples.
        fingerprint: hash of the examples; empty for evaluations, which keep none.
    """

    task: str
    split: str
    n: int
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.task}: {self.data}"

    @property
    def data(self) -> str:
        """Split, number of examples, and the start of their hash."""
        return f"{self.split}, n = {self.n:,}" + (f" [{self.fingerprint[:8]}]" if self.fingerprint else "")


@dataclass(frozen=True)
class ComparisonTable:
    """A comparison table with its footnotes, which explain all that is in it.

    Attributes:
        judged: the tests behind verdicts, in full.
        protocols: the data that scores are computed on.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    judged: tuple[dict[str, Any], ...] = ()
    protocols: tuple[ScoredSplit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def clean_text(comparison: ComparisonTable) -> ComparisonTable:
    """A comparison whose names and notes are one printable line each, and differ where they differed."""
    columns, rows = comparison.columns, comparison.rows
    keys = dict(zip((c.key for c in columns), printable_names([c.key for c in columns]), strict=True))
    titles = printable_names([column.title for column in columns])
    names = printable_names([row.name for row in rows])
    return replace(
        comparison,
        columns=tuple(
            replace(column, key=keys[column.key], title=title, unit=printable(column.unit), task=printable(column.task))
            for column, title in zip(columns, titles, strict=True)
        ),
        rows=tuple(
            replace(
                row,
                name=name,
                cells={keys.get(key, printable(key)): _clean_cell(cell) for key, cell in row.cells.items()},
                source=printable(row.source),
                note=printable(row.note),
                mark=printable(row.mark),
            )
            for row, name in zip(rows, names, strict=True)
        ),
        notes=tuple(map(printable, comparison.notes)),
        protocols=tuple(
            replace(split, task=printable(split.task), split=printable(split.split)) for split in comparison.protocols
        ),
    )


def _clean_cell(cell: Cell) -> Cell:
    return replace(
        cell,
        reason=printable(cell.reason),
        written=printable(cell.written),
        called=printable(cell.called),
        mark=printable(cell.mark),
    )


def metric_key(task: str, metric: str, published: bool = False) -> str:
    """A metric's column by its key: of a task, or of rows that others have published."""
    return "/".join(part for part in (PUBLISHED if published else "", task, metric) if part)


MOST_NAMES = 12
"""A list with more names than this counts the rest."""


def list_names(names: Sequence[str]) -> str:
    """Names separated by commas; a long list is cut, with the number of those left out."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return ", ".join([*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"])
