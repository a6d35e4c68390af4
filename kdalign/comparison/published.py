"""Published rows: the reference file that holds them, and the columns under which they are shown.

A file is YAML or JSON; a row may have a ``source``, ``note`` and ``task`` of its own::

    source: "arXiv:2412.19449, table 1"
    note: the paper does not say on which data
    columns: {ppl: word_ppl}
    rows:
      - {model: XLNet, scores: {ppl: 9.10, cer: 10.2%}}

``columns`` names the metric of kdalign's under which a number is shown. This does not make the two comparable:
published rows are therefore marked, come last and are never ranked.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kdalign.comparison.table import Cell, Column, Row, metric_key
from kdalign.errors import UsageError, did_you_mean, unknown
from kdalign.files import parse_json, read_text
from kdalign.recipe.strict_yaml import parse_yaml

_KEYS = ("source", "note", "task", "columns", "rows")
_ROW_KEYS = ("model", "scores", "source", "note", "task")
_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s?%?")
_MARKS = "†‡§¶"
_NOTHING = (None, "", "~", "null")
"""Keys without a value: this YAML loader reads all values as text."""
_NEVER = ("agreement", "retained")
"""Columns relative to the measured teacher, which no publication can have."""


@dataclass(frozen=True)
class Published:
    """A published row as its source has it.

    Attributes:
        scores: numbers as they were written, by the file's names.
        metrics: kdalign's names by the file's, if they differ.
        note: limits of what is known about the numbers.
        task: the task whose columns they belong to; empty if the file claims none.
    """

    model: str
    scores: Mapping[str, str]
    metrics: Mapping[str, str]
    source: str
    note: str = ""
    task: str = ""

    def metric(self, name: str) -> str:
        """Return the metric, or the column's key, under which a score is shown."""
        return self.metrics.get(name, name)


def read_published(file: Path) -> list[Published]:
    """Read the rows of a reference file.

    Raises:
        UsageError: no such file, an unknown key, or a value that is not accepted.
    """
    where = f"reference file {str(file)!r}"
    tree = _tree(file, where)
    _check_keys(tree, _KEYS, where)
    metrics = {name: _text(metric, f"{where}, columns: {name!r}") for name, metric in _mapping(tree, "columns", where)}
    rows = tree.get("rows")
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{where} needs 'rows', a list of 'model' and 'scores'")
    published = [_row(row, tree, metrics, f"{where}, row {number}") for number, row in enumerate(rows, 1)]
    names = list(dict.fromkeys(name for row in published for name in row.scores))
    for name in metrics:
        if name not in names:
            raise unknown(f"score in {where}, columns:", name, names)
    return published


def _tree(file: Path, where: str) -> dict[str, Any]:
    if not file.is_file():
        near = did_you_mean(file.name, (other.name for other in file.parent.glob("*") if other.is_file()))
        raise UsageError(f"cannot read {where}: there is no such file{near} (accepted: YAML or JSON)")
    try:
        # Every value is read as text, in JSON too: 9.10 is shown as written, and a model called 4 is not a number.
        if file.suffix == ".json":
            tree = parse_json(read_text(file), "it", parse_float=str, parse_int=str, parse_constant=str)
        else:
            tree = parse_yaml(read_text(file), "it", yaml.BaseLoader)
    except UsageError as error:
        raise UsageError(f"cannot read {where}: {error}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{where} holds no keys (known: {', '.join(_KEYS)})")
    return tree


def _check_keys(tree: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in tree:
        if key not in known:
            raise unknown(f"key in {where}:", str(key), known)


def _mapping(tree: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
    value = tree.get(key) or {}
    if not isinstance(value, dict):
        raise UsageError(f"{where}: {key!r} takes names with values; given {value!r}")
    return [(_text(name, f"{where}, {key}"), inner) for name, inner in value.items()]


def _text(value: object, where: str) -> str:
    """One printable line of text."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text or not text.isprintable():
        raise UsageError(f"{where} takes a line of text; given {value!r}")
    return text


def _row(row: object, tree: Mapping[str, Any], metrics: Mapping[str, str], where: str) -> Published:
    if not isinstance(row, dict):
        raise UsageError(f"{where} takes the keys {', '.join(_ROW_KEYS)}; given {row!r}")
    _check_keys(row, _ROW_KEYS, where)
    if "model" not in row:
        raise UsageError(f"{where} needs 'model', a name")
    scores = {name: _number(value, f"{where}, score {name!r}") for name, value in _mapping(row, "scores", where)}
    if not scores:
        raise UsageError(f"{where} needs 'scores', names with numbers such as ppl: 8.75 or cer: 9.6%")
    own = {
        key: _text(row[key], f"{where}: {key!r}") for key in ("source", "note", "task") if row.get(key) not in _NOTHING
    }
    # The file's note is about the file's source, so it does not hold for a row with another one.
    inherited = ("task",) if "source" in own else ("source", "note", "task")
    facts = {key: _text(tree[key], f"{where}: {key!r}") for key in inherited if tree.get(key) not in _NOTHING} | own
    if "source" not in facts:
        raise UsageError(f"{where} has no 'source': say where its numbers were published, in the file or in the row")
    published = Published(_text(row["model"], f"{where}: 'model'"), scores, metrics, **facts)
    shown = [published.metric(name) for name in scores]
    for metric in shown:
        if shown.count(metric) > 1:
            raise UsageError(f"{where}: several scores would be shown under {metric!r}")
    return published


def _number(value: object, where: str) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not _NUMBER.fullmatch(text) or not math.isfinite(_value(text)):
        raise UsageError(f"{where} takes a number such as 8.75 or 9.6%; given {value!r} (leave out what is not known)")
    return text


def _value(written: str) -> float:
    return float(written.removesuffix("%"))


def reference_rows(published: Sequence[Published], columns: Sequence[Column]) -> tuple[list[Row], list[Column]]:
    """Build table rows of published ones.

    Args:
        published: rows as they were read.
        columns: columns of the measured rows.

    Returns:
        The rows, without marks, and further columns for numbers that belong to no measured column.
    """
    rows = []
    further: dict[str, Column] = {}
    for row in published:
        cells: dict[str, Cell] = {}
        for name, written in row.scores.items():
            matching = _matching_columns(row, name, columns)
            if not matching:
                key = metric_key(row.task, name, published=True)
                title = " ".join(key.split("/"))
                matching = [further.setdefault(key, Column(key, title, "", 1, task=row.task, published=True))]
            cells |= {column.key: Cell(_value(written), written=written, called=name) for column in matching}
        rows.append(Row(row.model, "reference", (), cells, source=row.source, note=row.note))
    return rows, list(further.values())


def _matching_columns(row: Published, name: str, columns: Sequence[Column]) -> list[Column]:
    """The measured columns under which a number is shown: the one that it names, or its metric's of every task."""
    candidates = [
        column for column in columns if not column.cost and column.key not in _NEVER and row.task in ("", column.task)
    ]
    named = {row.metric(other) for other in row.scores}
    exact = [column for column in candidates if column.key == row.metric(name)]
    return exact or [
        column
        for column in candidates
        if column.task and column.key == metric_key(column.task, row.metric(name)) and column.key not in named
    ]


def mark_sources(rows: Sequence[Row]) -> list[Row]:
    """Mark published rows: one sign for each source and its note."""
    sources = list(dict.fromkeys((row.source, row.note) for row in rows))
    marks = [*_MARKS, *(f"†{number}" for number in range(len(_MARKS) + 1, len(sources) + 1))]
    return [replace(row, mark=marks[sources.index((row.source, row.note))]) for row in rows]
