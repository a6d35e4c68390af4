"""Rows that others have published: the file that holds them, and the columns under which they are shown.

A file, YAML or JSON; a row may have a ``source``, ``note`` and ``task`` of its own::

    source: "arXiv:2412.19449, table 1"
    note: the paper does not say on which data
    columns: {ppl: word_ppl}
    rows:
      - {model: XLNet, scores: {ppl: 9.10, cer: 10.2%}}

``columns`` says under which of kdalign's metrics a number is shown. It makes the two no more alike: that is why such
rows are marked, come last and are never ranked.
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
from kdalign.files import parse_json, parse_yaml, read_text

_KEYS = ("source", "note", "task", "columns", "rows")
_ROW_KEYS = ("model", "scores", "source", "note", "task")
_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s?%?")
_MARKS = "†‡§¶"
_NOTHING = (None, "", "~", "null")
"""A key without a value: to this reader of YAML all values are text."""
_NEVER = ("agreement", "retained")
"""Columns about the measured teacher, of which no publication knows."""


@dataclass(frozen=True)
class Published:
    """A row as its source has it.

    Attributes:
        scores: by the file's names, as they were written.
        metrics: the file's names to kdalign's, where they differ.
        note: what is not known of how the numbers were made.
        task: whose column they belong to; empty where the file claims none.
    """

    model: str
    scores: Mapping[str, str]
    metrics: Mapping[str, str]
    source: str
    note: str = ""
    task: str = ""

    def metric(self, name: str) -> str:
        """The metric, or the column's key, under which a score is shown."""
        return self.metrics.get(name, name)


def read_published(file: Path) -> list[Published]:
    """The rows of a reference file.

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
    found = [_row(row, tree, metrics, f"{where}, row {number}") for number, row in enumerate(rows, 1)]
    names = list(dict.fromkeys(name for row in found for name in row.scores))
    for name in metrics:
        if name not in names:
            raise unknown(f"score in {where}, columns:", name, names)
    return found


def _tree(file: Path, where: str) -> dict[str, Any]:
    if not file.is_file():
        near = did_you_mean(file.name, (other.name for other in file.parent.glob("*") if other.is_file()))
        raise UsageError(f"cannot read {where}: there is no such file{near} (accepted: YAML or JSON)")
    try:
        # Every value is text, in JSON too: 9.10 is shown as it was written, and a model called 4 is not a number.
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
    """One line of text that can be put into a table."""
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
    # What the file says of its source is not said of another one.
    taken = ("task",) if "source" in own else ("source", "note", "task")
    given = {key: _text(tree[key], f"{where}: {key!r}") for key in taken if tree.get(key) not in _NOTHING} | own
    if "source" not in given:
        raise UsageError(f"{where} has no 'source': say where its numbers were published, in the file or in the row")
    made = Published(_text(row["model"], f"{where}: 'model'"), scores, metrics, **given)
    shown = [made.metric(name) for name in scores]
    for name in scores:
        if shown.count(made.metric(name)) > 1:
            raise UsageError(f"{where}: several scores would be shown under {made.metric(name)!r}")
    return made


def _number(value: object, where: str) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not _NUMBER.fullmatch(text) or not math.isfinite(_value(text)):
        raise UsageError(f"{where} takes a number such as 8.75 or 9.6%; given {value!r} (leave out what is not known)")
    return text


def _value(written: str) -> float:
    return float(written.removesuffix("%"))


def reference_rows(published: Sequence[Published], columns: Sequence[Column]) -> tuple[list[Row], list[Column]]:
    """Put published rows beside measured ones.

    Args:
        published: as read.
        columns: those that measured rows have.

    Returns:
        The rows, without marks, and columns for those of their numbers that no measured column stands for.
    """
    rows = []
    further: dict[str, Column] = {}
    for one in published:
        cells: dict[str, Cell] = {}
        for name, written in one.scores.items():
            places = _places(one, name, columns)
            if not places:
                key = metric_key(one.task, name, published=True)
                title = " ".join(key.split("/"))
                places = [further.setdefault(key, Column(key, title, "", 1, task=one.task, published=True))]
            cells |= {column.key: Cell(_value(written), written=written, called=name) for column in places}
        rows.append(Row(one.model, "reference", (), cells, source=one.source, note=one.note))
    return rows, list(further.values())


def _places(one: Published, name: str, columns: Sequence[Column]) -> list[Column]:
    """The measured columns under which a number is shown: the one that it names, or its metric's of every task."""
    open_to = [
        column for column in columns if not column.cost and column.key not in _NEVER and one.task in ("", column.task)
    ]
    named = {one.metric(other) for other in one.scores}
    exact = [column for column in open_to if column.key == one.metric(name)]
    return exact or [
        column
        for column in open_to
        if column.task and column.key == metric_key(column.task, one.metric(name)) and column.key not in named
    ]


def mark_sources(rows: Sequence[Row]) -> list[Row]:
    """Give the rows their marks, one for each source and what is said of it."""
    sources = list(dict.fromkeys((row.source, row.note) for row in rows))
    marks = [*_MARKS, *(f"†{number}" for number in range(len(_MARKS) + 1, len(sources) + 1))]
    return [replace(row, mark=marks[sources.index((row.source, row.note))]) for row in rows]
