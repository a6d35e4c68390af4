"""A comparison as CSV and JSON."""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from kdalign.comparison.table import ComparisonTable
from kdalign.report.layout import row_label


def as_csv(comparison: ComparisonTable, transpose: bool) -> str:
    """Write one flat table (RFC 4180): each column with the ends of its interval, and verdicts if there are any.

    Numbers are unrounded, in the units of the other formats. Transposed, a row is a metric and has its unit. A name
    that a spreadsheet would compute (``=1+1``) is prefixed with a quotation mark.
    """
    judged = any(cell.verdict for row in comparison.rows for cell in row.cells.values())
    parts = ("", "_low", "_high", *(["_verdict"] if judged else []))

    def values_of(row: int, key: str) -> list[str | float | None]:
        cell = comparison.rows[row].cells.get(key)
        values = [cell.value, cell.low, cell.high, cell.verdict] if cell is not None else [None, None, None, ""]
        return list(values[: len(parts)])

    rows = range(len(comparison.rows))
    lines: list[list[object]] = []
    if transpose:
        names = _number_repeated([row_label(row) for row in comparison.rows])
        lines.append(["metric", "unit", *(f"{name}{part}" for name in names for part in parts)])
        for column in comparison.columns:
            lines.append([column.key, column.unit, *(value for row in rows for value in values_of(row, column.key))])
    else:
        keys = [column.key for column in comparison.columns]
        lines.append(["model", "kind", "seeds", *(f"{key}{part}" for key in keys for part in parts)])
        for number, row in enumerate(comparison.rows):
            seeds = " ".join(map(str, row.seeds))
            lines.append([row.name, row.kind, seeds, *(value for key in keys for value in values_of(number, key))])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows([_no_formula(value) for value in values] for values in lines)
    return buffer.getvalue()


_FORMULA = re.compile(r"""[\s'"]*[=+\-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH COMMERCIAL AT}]""")


def _no_formula(value: object) -> object:
    """Quote a name that a spreadsheet would compute; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _number_repeated(names: Sequence[str]) -> list[str]:
    """Names made unique by a number behind repeated ones."""
    counts = [names[: number + 1].count(name) for number, name in enumerate(names)]
    return [f"{name} #{count}" if count > 1 else name for name, count in zip(names, counts, strict=True)]


def as_json(comparison: ComparisonTable, transpose: bool) -> str:
    """Write the table with all that it holds; transposed, metrics with a cell for every model, None if it has none."""
    return json.dumps(_transposed(comparison) if transpose else comparison.to_json(), indent=2)


def _transposed(comparison: ComparisonTable) -> dict[str, object]:
    return {
        "models": [{key: value for key, value in asdict(row).items() if key != "cells"} for row in comparison.rows],
        "metrics": [
            asdict(column)
            | {"cells": [asdict(row.cells[column.key]) if column.key in row.cells else None for row in comparison.rows]}
            for column in comparison.columns
        ],
        "notes": list(comparison.notes),
    }
