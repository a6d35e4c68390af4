"""A comparison table of models: columns, cells, rows and footnotes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdalign.errors import printable, printable_names

PUBLISHED = "published"

SHARED = ("macro", "agreement", "ece", "retained")
"""Columns that are computed over a row's own tasks, whichever these are."""


PROFILED = ("flops", "flops-image", "latency", "speed-up")
"""Columns of what ``--no-profile`` leaves unmeasured."""
MODEL_COSTS = ("parameters", "megabytes", *PROFILED)
TRAINING_COSTS = ("steps", "tokens", "positions", "samples/s", "seconds")


BETTER, WORSE, ALIKE = VERDICTS = ("↑", "↓", "≈")
"""Marks behind a number: better or worse than the baseline row, or no evidence of either."""


@dataclass(frozen=True)
class Column:
    """A column: its key, its title, its unit and its format.

    Attributes:
        digits: number of decimals shown.
        task: the task that its scores are of; empty for a column over a row's own tasks.
        cost: true for a cost of the model, false for a score.
        training: true for a cost of training.
        detail: true for a metric whose task also has a column with the mean of its metrics.
        published: true if only published rows have values in it.
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
    """A value with the ends of its 95 % interval, if it has one.

    Attributes:
        best: true for the best student of a column whose rows rank.
        second: true for the best student after those.
        reason: why there is no value.
        written: a published number as its source writes it, which is how it is shown; empty if it was measured.
        called: the source's name of a published score.
        mark: a qualification that is shown with the number, such as ``pseudo``.
        verdict: result of the test against the baseline row: one of ``VERDICTS``, or empty.
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
    """A row: a model, or the mean of one recipe's runs over seeds.

    Attributes:
        kind: ``teacher``, ``student``, ``evaluation``, ``baseline`` (needs no training), ``difference`` of two
            students, or ``reference`` (published by others).
        source: publication of a published row.
        note: limits of what is known about a published row.
        mark: sign behind a published row's name and before the footnote with its source.
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    cells: dict[str, Cell]
    source: str = ""
    note: str = ""
    mark: str = ""

    def has_costs(self, training: bool) -> bool:
        """Return whether any cost of the model, or of its training, is known, shown or not."""
        return any(key in self.cells for key in (TRAINING_COSTS if training else MODEL_COSTS))


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
    """Make every name and note one printable line, and keep different names different."""
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
    """Key of a metric's column: of a task, or of published rows."""
    return "/".join(part for part in (PUBLISHED if published else "", task, metric) if part)


MOST_NAMES = 12
"""A list with more names than this counts the rest."""


def list_names(names: Sequence[str]) -> str:
    """Names separated by commas; a long list is cut, with the number of those left out."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return ", ".join([*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"])
