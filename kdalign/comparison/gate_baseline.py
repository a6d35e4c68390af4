"""Baselines of gates: an earlier table, read from its JSON or built from a run or an evaluation."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from kdalign.comparison.compare import compare
from kdalign.comparison.table import Cell, Column, ComparisonTable, Row, ScoredSplit
from kdalign.errors import UsageError
from kdalign.files import read_json

_NOTED_SPLIT = re.compile(r"(.+?): (.+?), n = ([\d,]+)(?: \[([0-9a-f]+)\]| of )")
"""The start of a footnote with the data of one task, of runs (with a fingerprint) or of evaluations (with a source)."""
_Part = TypeVar("_Part", Cell, Column, Row, ScoredSplit)


def read_baseline(path: Path) -> ComparisonTable:
    """Read an earlier table: JSON from ``kdalign compare``, or the table of a run or an evaluation.

    Raises:
        UsageError: nothing there, or something else.
    """
    try:
        tree = read_json(path) if path.is_file() else None
        if isinstance(tree, dict) and {"columns", "rows"} <= set(tree):
            return _parse_table(tree, path)
        return compare([path])
    except UsageError as error:
        raise UsageError(f"--baseline: {error}") from None


def _parse_table(tree: Mapping[str, Any], file: Path) -> ComparisonTable:
    """A table from its JSON; keys that this version does not know are ignored."""
    try:
        columns = tuple(_parse(Column, column) for column in tree["columns"])
        rows = tuple(_parse_row(row) for row in tree["rows"])
        notes = tuple(map(str, tree.get("notes", ())))
        if "protocols" in tree:
            protocols = tuple(_parse(ScoredSplit, split) for split in tree["protocols"])
        else:
            protocols = _protocols_in_notes(notes)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{str(file)!r} is not a table that `kdalign compare --format json` wrote: {error}") from None
    return ComparisonTable(columns, rows, notes, protocols=protocols)


def _parse_row(tree: Mapping[str, Any]) -> Row:
    cells = {str(key): _parse(Cell, cell) for key, cell in tree["cells"].items()}
    if not isinstance(tree["name"], str):
        raise TypeError(f"{tree['name']!r} is not the name of a row")
    for value in (value for cell in cells.values() for value in (cell.value, cell.low, cell.high)):
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"{value!r} is not a number")
    return _parse(Row, {**tree, "cells": cells})


def _parse(kind: type[_Part], tree: Mapping[str, Any]) -> _Part:
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in tree.items() if name in names})


def _protocols_in_notes(notes: Sequence[str]) -> tuple[ScoredSplit, ...]:
    """The data of tables that an earlier version wrote, which said it in footnotes alone."""
    matches = [match for note in notes if (match := _NOTED_SPLIT.match(note)) is not None]
    return tuple(ScoredSplit(match[1], match[2], int(match[3].replace(",", "")), match[4] or "") for match in matches)
