"""Footnotes on dashes: why a row has no value in a column of its table."""

from collections.abc import Sequence

from kdalign.comparison.table import Column, Row, list_names


def undefined_notes(rows: Sequence[Row]) -> list[str]:
    """The reasons of cells that were to be measured and have no value."""
    return [
        f"{row.name}, {key}: no value, {cell.reason}"
        for row in rows
        for key, cell in row.cells.items()
        if cell.value is None and cell.reason
    ]


def dash_notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Why rows of one kind have dashes where rows of another kind have scores.

    Rows that have the same dashes for one reason share a note.
    """
    titles: dict[tuple[str, str], list[str]] = {}  # by row and reason
    for row, column in _dashes(rows, columns):
        titles.setdefault((row.name, _why(row, column, columns)), []).append(column.title)
    names: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (name, why), own in titles.items():
        names.setdefault((tuple(own), why), []).append(name)
    return [f"– in {', '.join(own)} of {list_names(found)}: {why}" for (own, why), found in names.items()]


def _dashes(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[Row, Column]]:
    """Cells without a value and without a reason of their own, in the tables that scores and costs are shown in."""
    measured = [row for row in rows if row.kind != "reference"]
    scores = [column for column in columns if not column.cost and not column.published]
    tables = [(scores, measured)]
    for training in (False, True):
        costs = [column for column in columns if column.cost and column.training is training]
        tables.append((costs, [row for row in measured if row.has_costs(training)]))
    multi_task = any(len(tasks_of(row, columns)) > 1 for row in measured)
    dashes = []
    for own, shown in tables:
        for column in own:
            listed = [row for row in shown if multi_task or column.task in {"", *_tasks_asked(row, columns)}]
            if any(column.key in row.cells for row in listed):
                dashes += [(row, column) for row in listed if _is_bare(row, column)]
    return dashes


def _tasks_asked(row: Row, columns: Sequence[Column]) -> set[str]:
    """The tasks that a row might have scores of: all of them for a teacher without any."""
    tasks = tasks_of(row, columns)
    return {column.task for column in columns} if _is_unscored(row) else tasks


def _is_unscored(row: Row) -> bool:
    """True for a teacher whose answers have no scores, whatever columns are shown."""
    return row.kind == "teacher" and "retained" not in row.cells


def _is_bare(row: Row, column: Column) -> bool:
    cell = row.cells.get(column.key)
    return cell is None or (cell.value is None and not cell.reason)


def tasks_of(row: Row, columns: Sequence[Column]) -> set[str]:
    """The tasks that a row has scores of."""
    return {column.task for column in columns if any(key.startswith(f"{column.task}/") for key in row.cells)}


def _why(row: Row, column: Column, columns: Sequence[Column]) -> str:
    if row.kind == "teacher" and column.key in ("agreement", "speed-up"):
        return "a teacher is not compared with itself"
    if _is_unscored(row):
        return "it teaches features alone, so that its answers are not scored"
    if row.kind == "difference":
        return "it was not tested"
    if column.task and column.task not in tasks_of(row, columns):
        return f"not evaluated on {column.task}"
    if row.kind == "student" and column.key == "speed-up" and "retained" in row.cells:
        return "latency was not measured"
    if row.kind == "student" and column.key in ("agreement", "retained", "speed-up"):
        return "there is no teacher whose answers can be compared"
    if column.key == "ece":
        return "it is computed for classification runs only"
    if row.kind == "baseline":
        return "it is not measured for baselines"
    return "it was not measured"
