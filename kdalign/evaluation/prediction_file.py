"""Score a file of predictions and references, whatever made them."""

import json
import re
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.tables import DELIMITERS, FORMATS, file_format, read_table
from kdalign.data.tasks.columns import (
    cell_kind,
    cell_kinds,
    check_text,
    column_cells,
    describe_cell,
    has_comma,
    is_missing,
    missing_header_hint,
    not_text_error,
    parse_numbers,
)
from kdalign.errors import UsageError, did_you_mean, unknown
from kdalign.evaluation.result import EvaluationResult
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import METRICS, Metric, Score, expand_groups, score
from kdalign.metrics.intervals import example_interval
from kdalign.metrics.languages import language_code
from kdalign.metrics.text import TEXT_METRICS, score_texts
from kdalign.metrics.text_notes import notes_on_words

DEFAULT_TEXT_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "cer", "wer", "exact_match")
MOST_CLASSES = 1000
"""Limit of classes in a file of predictions: intervals draw tables of classes by classes."""
MOST_CLASS = 2**53
"""Limit of a class's number: from here on, whole numbers that differ may be equal in float64."""
_REFERENCE = re.compile(r"ref(?:erence)?s?[\s_-]*\d*", re.IGNORECASE)
"""Names of columns that look like references."""


def score_file(file: str, metrics: Sequence[str] | None = None, language: str | None = None) -> EvaluationResult:
    """Score a file with the columns ``prediction`` and ``reference``, or ``references``, a list in each row.

    Texts are scored by metrics of texts, numbers (classes or scores) by metrics of classes and scores. False and true
    are the classes 0 and 1.

    Args:
        file: parquet, csv, tsv or jsonl file.
        metrics: names of metrics; by default those of texts, accuracy and macro F1 for whole numbers, or correlations.
        language: language code of the texts; Unicode's rules divide words if it is left out.

    Raises:
        UsageError: no such file or column, a row without its text, an unknown language, or a metric of something else.
    """
    language = language_code(language) if language is not None else ""
    columns = _read_columns(file)
    metrics = expand_groups(metrics or ())
    notes: tuple[str, ...] = ()
    if columns.are_numbers(metrics):
        if language:
            raise UsageError(
                f"--language is for texts, and {file!r} holds numbers (texts for a metric such as exact_match)"
            )
        scores = _score_numbers(columns, metrics)
    else:
        scores, notes = _score_texts(columns, metrics, language)
    if columns.unread:
        notes = (*notes, f"not read: {', '.join(columns.unread)}; the references are in {columns.name}")
    return EvaluationResult(
        model=Path(file).stem,
        task=Path(file).stem,
        split="file",
        source=file,
        n=len(columns.predictions),
        truncated=0,
        scores=tuple(scores),
        predictions=file,
        kind="file",
        notes=notes,
    )


@dataclass(frozen=True)
class _Columns:
    """The predictions and references of a file.

    Attributes:
        file: name of the file, for errors.
        predictions: cells of the column ``prediction``.
        references: cells of the column of references.
        name: its name, ``reference`` or ``references``.
        unread: other columns that look like references.
        delimited: True for csv and tsv, in which every cell is text.
    """

    file: str
    predictions: list[Any]
    references: list[Any]
    name: str
    unread: tuple[str, ...]
    delimited: bool

    @property
    def named(self) -> dict[str, list[Any]]:
        """Both columns by name."""
        return {"prediction": self.predictions, self.name: self.references}

    def are_numbers(self, metrics: Sequence[str]) -> bool:
        """Return whether the file holds classes or scores: numbers, unless a metric of texts is named.

        In csv and tsv a cell that spells a number is one; elsewhere text is text, unless all metrics are of numbers.
        """
        if any(name in TEXT_METRICS for name in metrics):
            return False
        kinds = cell_kinds(self.predictions) | cell_kinds(self.references)
        of_numbers = bool(metrics) and all(name in METRICS for name in metrics)
        return kinds == {"number"} or (kinds <= {"number", "digits"} and (self.delimited or of_numbers))


def _read_columns(file: str) -> _Columns:
    """Read a file's predictions and references, and check that each row has both."""
    path = Path(file)
    if not path.is_file():
        near = did_you_mean(path.name, [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise UsageError(f"no file {file!r}{near} (accepted: .{', .'.join(FORMATS)})")
    if file_format(path) not in FORMATS:
        raise UsageError(f"{file!r}: predictions are read from {', '.join(FORMATS)} files")
    table = read_table(path)
    name = next((name for name in ("references", "reference") if name in table.columns), None)
    unread = tuple(str(other) for other in table.columns if _REFERENCE.fullmatch(str(other)) and other != name)
    if name is None or "prediction" not in table.columns:
        raise UsageError(
            f"{file!r} needs the columns prediction and reference (or references), and has "
            f"{', '.join(map(str, table.columns)) or 'none'}{missing_header_hint(table)}"
            + ("; several references go into one column references, a list in each row" if len(unread) > 1 else "")
        )
    if len(table) == 0:
        raise UsageError(f"{file!r} has no rows")
    predictions, references = column_cells(table, "prediction"), column_cells(table, name)
    columns = _Columns(file, predictions, references, name, unread, file_format(path) in DELIMITERS)
    for column, cells in columns.named.items():
        missing = next((row for row, cell in enumerate(cells) if is_missing(cell)), None)
        if missing is not None:
            hint = '; an empty text is written as ""' if columns.delimited else ""
            raise UsageError(f"{file!r}: row {missing} has no {column}{hint}")
    if cell_kinds(predictions) | cell_kinds(references) == {"truth"}:
        predictions, references = ([int(cell) for cell in cells] for cells in (predictions, references))
        return replace(columns, predictions=predictions, references=references)
    return columns


def _score_numbers(columns: _Columns, metrics: Sequence[str]) -> list[Score]:
    """Score classes or scores."""
    file = columns.file
    ours, references = (parse_numbers(cells, repr(file), name, finite=False) for name, cells in columns.named.items())
    whole = all(np.array_equal(values, np.round(values)) for values in (ours, references))
    scores = []
    for name in metrics or (("accuracy", "macro_f1") if whole else ("pearson", "spearman")):
        if name not in METRICS:
            raise unknown(f"metric of the numbers in {file!r}:", name, METRICS)
        metric = METRICS[name]
        if metric.of_logits:
            raise UsageError(f"{file!r}: {name} is of logits, which the file does not hold")
        if metric.binary and max(ours.max(), references.max()) > 1:
            raise UsageError(f"{file!r}: {name} is of two classes, 0 and 1; macro_f1 is of more")
        pair = (ours, references) if metric.regression else _classes(columns, ours, references, metric)
        low, high = example_interval(name, metric.compute, *pair, metric.of_counts, metric.of_rows)
        scores.append(replace(score(metric, *pair), low=low, high=high))
    return scores


def _classes(columns: _Columns, ours: Array, references: Array, metric: Metric) -> tuple[Array, Array]:
    """Check numbers that a metric takes for classes, and renumber them.

    Classes are numbered by their order among those that occur, so that a large number needs no table of its size.
    """
    file = columns.file
    for name, values in (("prediction", ours), (columns.name, references)):
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise UsageError(f"{file!r}: row {row}: the {name} {values[row]} is not a class")
    both = np.concatenate([ours, references])
    if not np.array_equal(both, np.round(both)):
        raise UsageError(f"{file!r}: {metric.name} is of classes, and these numbers are not whole")
    if both.min() < 0:
        raise UsageError(f"{file!r}: classes are counted from 0")
    if both.max() >= MOST_CLASS:
        raise UsageError(f"{file!r}: classes are whole numbers below 2 to the power of 53")
    if metric.binary:
        return ours.astype(np.int64), references.astype(np.int64)
    classes, numbers = np.unique(both, return_inverse=True)
    if len(classes) > MOST_CLASSES:
        raise UsageError(f"{file!r}: {len(classes):,} different classes (accepted: up to {MOST_CLASSES:,})")
    return numbers[: len(ours)], numbers[len(ours) :]


def _score_texts(columns: _Columns, metrics: Sequence[str], language: str) -> tuple[list[Score], tuple[str, ...]]:
    """Score texts; return notes on their words as well."""
    file, metrics = columns.file, metrics or DEFAULT_TEXT_METRICS
    for name in metrics:
        if name in METRICS:
            raise _not_numbers_error(name, columns, metrics)
    texts = [_text(cell, f"{file!r}: row {row}", "prediction") for row, cell in enumerate(columns.predictions)]
    references = [
        _reference_texts(cell, f"{file!r}: row {row}", columns.name) for row, cell in enumerate(columns.references)
    ]
    scores, _ = score_texts(metrics, texts, references, language)
    return scores, notes_on_words(metrics, texts, references, language)


def _reference_texts(cell: object, where: str, column: str) -> list[str]:
    """Return a row's references: one text, or a list of them."""
    if column == "reference":
        return [_text(cell, where, column)]
    if isinstance(cell, str):
        cell = _parse_list(cell, where)
    if not (isinstance(cell, list | tuple | np.ndarray) and len(cell)):
        raise UsageError(f"{where} has {describe_cell(cell)} in column {column!r}, which needs a list of texts")
    return [_text(text, where, column) for text in cell]


def _parse_list(value: str, where: str) -> object:
    """Parse a list in a text file, as JSON or Python write it."""
    parsed = None
    for parse in (json.loads, literal_eval):  # Python writes ["it's", 'so'], which is not JSON
        try:
            parsed = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two where it is nested too deeply
            continue
        break
    if not isinstance(parsed, list):
        raise UsageError(f'{where} has no list in \'references\', such as ["one", "other"]; given {value[:60]!r}')
    return parsed


def _not_numbers_error(name: str, columns: _Columns, metrics: Sequence[str]) -> UsageError:
    """Return the error for a metric of numbers in a file that is read as texts, with the reason why it is."""
    file, others = columns.file, [other for other in metrics if other not in METRICS]
    if others:
        return UsageError(f"{file!r}: {name} is of numbers, and {others[0]} of texts: score by one kind at a time")
    for column, cells in columns.named.items():
        for row, cell in enumerate(cells):
            if cell_kind(cell) not in ("number", "digits"):
                hint = "; write decimals after a point" if has_comma(cell) else ""
                if not METRICS[name].regression:
                    hint = "; classes are numbers from 0 on, and exact_match compares names"
                return UsageError(
                    f"{file!r}: {name} is of numbers, and row {row} has {describe_cell(cell)} "
                    f"in column {column!r}{hint}"
                )
    return UsageError(f"{file!r}: {name} is of numbers, and this file is read as texts")


def _text(cell: object, where: str, column: str) -> str:
    """Return a cell that holds a text.

    Raises:
        UsageError: it holds something else.
    """
    if not isinstance(cell, str):
        raise not_text_error(cell, where, column)
    return check_text(cell, where, column)
