"""Read labels, written as names, numbers or truth values, as numbers in a task's order."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.tasks.columns import (
    Kind,
    cell_kind,
    column_cells,
    describe_cell,
    is_blank,
    is_missing,
    parse_number,
    parse_numbers,
)
from kdalign.data.tasks.task import ClassificationTask, normalise_label
from kdalign.errors import UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd


def read_labels(
    task: ClassificationTask, table: "pd.DataFrame", where: str, first: int = 0
) -> np.ndarray[Any, Any] | None:
    """Read labels as numbers in the task's order; None for a split without labels (-1 everywhere, or no column).

    A number written as text counts as the number. ``first`` is the number of the table's first row, for error lines.
    """
    if task.label not in table.columns:
        near = [str(name) for name in table.columns if str(name).strip().lower() == task.label.lower()]
        if near:
            raise UsageError(f"{where}: column {near[0]!r} must be called {task.label!r}, in exactly this spelling")
        return None
    cells = [None if isinstance(cell, str) and is_blank(cell) else cell for cell in column_cells(table, task.label)]
    missing = [row for row, cell in enumerate(cells) if is_missing(cell)]
    if missing:
        if len(missing) == len(cells):
            return None
        raise UsageError(f"{where}: row {first + missing[0]} has no label in {task.label!r}")
    kinds = check_kinds(cells, where, task.label, first)
    named = _numeric_names(task)
    if {parse_number(cell) for cell in cells} == {-1.0} and -1 not in named:
        return None
    if task.regression:
        return parse_numbers(cells, where, task.label, first=first)
    if kinds == {"truth"}:
        if len(task.labels) != 2:
            raise UsageError(
                f"{where}: task {task.name!r} has {len(task.labels)} labels, and {task.label!r} true and false"
            )
        return np.array(cells, dtype=np.int64)
    if kinds <= {"text", "digits"}:
        return _read_names(task, cells, where, first)
    return _read_numbers(task, cells, named, where, first)


class LabelCells:
    """Labels of a column that is read in parts: its different cells, as far as they decide how labels are read.

    Classes are told apart by their cells; of scores, which may all differ, the first cell of each kind is enough.

    Attributes:
        cells: different cells, in the order in which they come.
    """

    def __init__(self, task: ClassificationTask) -> None:
        self.cells: list[Any] = []
        self._regression, self._numbers = task.regression, dict[Any, int]()

    def add(self, cells: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Add cells; return the number of each among ``cells`` (int32), or of scores their values (float64)."""
        if self._regression:
            values = [parse_number(cell) for cell in cells]
            for cell, value in zip(cells, values, strict=True):
                self._number(cell, None if _is_blank(cell) else (cell_kind(cell), _sort_of_score(value)))
            return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        return np.fromiter((self._number(cell, _class_key(cell)) for cell in cells), dtype=np.int32, count=len(cells))

    def _number(self, cell: Any, key: Any) -> int:
        number = self._numbers.setdefault(key, len(self.cells))
        if number == len(self.cells):
            self.cells.append(cell)
        return number


def _class_key(cell: Any) -> Any:
    """Key that is equal for cells of one label, or of one error."""
    if _is_blank(cell):
        return None
    return "other" if cell_kind(cell) == "other" else (type(cell), cell)


def _is_blank(cell: Any) -> bool:
    return is_missing(cell) or (isinstance(cell, str) and is_blank(cell))


def _sort_of_score(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "none" if value is None else "not finite"
    return "unknown" if value == -1 else "score"


def check_kinds(cells: Sequence[object], where: str, column: str, first: int = 0) -> set[Kind]:
    """Check that labels, the first of them in row ``first``, are of one kind: text, numbers or truth values.

    Raises:
        UsageError: a label of another kind than the first, or of none; the line names both.
    """
    kinds = [cell_kind(cell) for cell in cells if not is_missing(cell)]
    rows = [row for row, cell in enumerate(cells) if not is_missing(cell)]
    for row, kind in zip(rows, kinds, strict=True):
        if kind != "other" and _ALIKE[kind] == _ALIKE[kinds[0]]:
            continue
        has = f"{where}: row {first + row} has {describe_cell(cells[row])} in column {column!r}"
        if kind == "other":
            raise UsageError(f"{has}, where a label is expected (accepted: text, or numbers)")
        raise UsageError(
            f"{has}, and row {first + rows[0]} {describe_cell(cells[rows[0]])}: labels are all text, or all numbers"
        )
    return set(kinds)


_ALIKE = {"text": "text", "digits": "text", "number": "number", "truth": "truth"}


def _numeric_names(task: ClassificationTask) -> dict[float, int]:
    """Map labels with whole numbers as names to their places."""
    return {float(name): number for number, name in enumerate(task.labels) if re.fullmatch(r"-?\d+", name)}


def _read_names(task: ClassificationTask, cells: Sequence[Any], where: str, first: int) -> np.ndarray[Any, Any]:
    """Read labels that are text: names, or the text of numbers."""
    numbers = {normalise_label(name): number for number, name in enumerate(task.labels)}
    encoded = [numbers.get(normalise_label(name), -1) for name in cells]
    if -1 not in encoded:
        return np.array(encoded, dtype=np.int64)
    if all(cell_kind(cell) == "digits" for cell in cells):
        return _read_numbers(task, cells, _numeric_names(task), where, first)
    if len(task.labels) == 2 and {normalise_label(name) for name in cells} <= {"false", "true"}:
        return np.array([normalise_label(name) == "true" for name in cells], dtype=np.int64)
    wrong = [row for row, number in enumerate(encoded) if number == -1]
    row = next((row for row in wrong if cell_kind(cells[row]) != "digits"), wrong[0])
    raise unknown(f"label in row {first + row} of {where}:", str(cells[row]), task.labels)


def _read_numbers(
    task: ClassificationTask, cells: Sequence[object], named: Mapping[float, int], where: str, first: int
) -> np.ndarray[Any, Any]:
    """Read labels that are numbers: names of the task's labels, or places in their order."""
    values = parse_numbers(cells, where, task.label, first=first)
    if len(named) < len(task.labels):
        named = {float(number): number for number in range(len(task.labels))}
    numbered = [named.get(value, -1) for value in values.tolist()]
    if -1 not in numbered:
        return np.array(numbered, dtype=np.int64)
    row = numbered.index(-1)
    allowed = ", ".join(f"{value:g} {task.labels[number]}" for value, number in named.items())
    from_one = values.min() == 1 and values.max() == len(task.labels) and 0 in named
    raise UsageError(
        f"{where}: label {values[row]:g} in row {first + row} is not one of task {task.name!r} (accepted: {allowed})"
        + ("; these labels are counted from 1, and classes from 0" if from_one else "")
    )


def label_order(names: Sequence[str], task: ClassificationTask) -> tuple[int, ...] | None:
    """Match the task's labels with a model's outputs: the output's number for each label.

    Names are matched first. Names such as ``LABEL_0`` that count up tell nothing: their order is taken for the task's,
    unless the task's own came from sorting. Returns None if nothing matches.
    """
    numbers = {normalise_label(name): number for number, name in enumerate(names)}
    wanted = [normalise_label(label) for label in task.labels]
    if len(names) == len(wanted) and set(wanted) == set(numbers):
        return tuple(numbers[label] for label in wanted)
    given = [re.fullmatch(r"label(\d+)", normalise_label(name)) for name in names]
    counted = [int(each[1]) - number for number, each in enumerate(given) if each]
    says_nothing = len(counted) == len(names) and len(set(counted)) == 1  # LABEL_1 before LABEL_0 says something
    if says_nothing and len(names) == len(wanted) and not task.order_unknown:
        return tuple(range(len(names)))
    return None
