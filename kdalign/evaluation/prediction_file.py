"""Score predictions that lie in a file, whoever made them."""

import json
import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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

OF_TEXTS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "cer", "wer", "exact_match")
"""What texts are scored by where nobody says."""
MOST_CLASSES = 1000
"""In a file of predictions: intervals draw tables of classes by classes."""
MOST_CLASS = 2**53
"""Whole numbers from here on may be equal in float64 and yet not be the same."""
_REFERENCE = re.compile(r"ref(?:erence)?s?[\s_-]*\d*", re.IGNORECASE)
"""How columns of references are called."""


def score_file(file: str, metrics: Sequence[str] | None = None, language: str | None = None) -> EvaluationResult:
    """Score a file with the columns ``prediction`` and ``reference``, or ``references``, a list for each row.

    Texts are scored by metrics of texts, numbers (classes or scores) by metrics of classes and scores. False and true
    are the classes 0 and 1.

    Args:
        file: parquet, csv, tsv or jsonl.
        metrics: names; those of texts, or accuracy and macro F1 for whole numbers, or correlations where left out.
        language: of the texts, a code; words are told apart by Unicode's rules where it is left out.

    Raises:
        UsageError: no such file or column, a row without its text, an unknown language, or a metric of something else.
    """
    language = language_code(language) if language is not None else ""
    place = Path(file)
    if not place.is_file():
        near = did_you_mean(place.name, [one.name for one in place.parent.iterdir()] if place.parent.is_dir() else [])
        raise UsageError(f"no file {file!r}{near} (accepted: .{', .'.join(FORMATS)})")
    if file_format(place) not in FORMATS:
        raise UsageError(f"{file!r}: predictions are read from {', '.join(FORMATS)} files")
    metrics = expand_groups(metrics or ())
    table = read_table(place)
    column = next((name for name in ("references", "reference") if name in table.columns), None)
    unread = [str(name) for name in table.columns if _REFERENCE.fullmatch(str(name)) and name != column]
    if column is None or "prediction" not in table.columns:
        raise UsageError(
            f"{file!r} needs the columns prediction and reference (or references), and has "
            f"{', '.join(map(str, table.columns)) or 'none'}{missing_header_hint(table)}"
            + ("; several references stand in one column references, a list in each row" if len(unread) > 1 else "")
        )
    if len(table) == 0:
        raise UsageError(f"{file!r} has no rows")
    predictions, references = (column_cells(table, name) for name in ("prediction", column))
    delimited = file_format(place) in DELIMITERS
    if cell_kinds(predictions) | cell_kinds(references) == {"truth"} and not any(
        map(is_missing, predictions + references)
    ):
        predictions, references = ([int(cell) for cell in cells] for cells in (predictions, references))
    for name, cells in (("prediction", predictions), (column, references)):
        for row, cell in enumerate(cells):
            if is_missing(cell):
                mend = '; an empty text is written as ""' if delimited else ""
                raise UsageError(f"{file!r}: row {row} has no {name}{mend}")
    notes: tuple[str, ...] = ()
    if _are_numbers(predictions, references, metrics, delimited):
        if language:
            raise UsageError(
                f"--language is for texts, and {file!r} holds numbers (texts for a metric such as exact_match)"
            )
        ours = parse_numbers(predictions, repr(file), "prediction", finite=False)
        scores = _numbers(ours, parse_numbers(references, repr(file), column, finite=False), column, metrics, file)
    else:
        scores, notes = _texts(predictions, references, column, metrics, language, file)
    if unread:
        notes = (*notes, f"not read: {', '.join(unread)}; what is right is in {column}")
    return EvaluationResult(
        model=place.stem,
        task=place.stem,
        split="file",
        source=file,
        n=len(table),
        truncated=0,
        scores=tuple(scores),
        predictions=file,
        kind="file",
        notes=notes,
    )


def _listed(value: str, where: str) -> object:
    """A list as a file of text writes it, by JSON or by Python."""
    found = None
    for read in (json.loads, literal_eval):  # Python writes ["it's", 'so'], which is no JSON
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two where it is nested too deeply
            continue
        break
    if not isinstance(found, list):
        raise UsageError(f'{where} has no list in \'references\', such as ["one", "other"]; given {value[:60]!r}')
    return found


def _are_numbers(
    predictions: Sequence[object], references: Sequence[object], metrics: Sequence[str], delimited: bool
) -> bool:
    """Whether a file holds classes or scores: numbers, unless a metric of texts is asked for.

    In csv and tsv, what writes a number is one; elsewhere text is text, unless metrics of numbers are asked for.
    """
    if any(name in TEXT_METRICS for name in metrics):
        return False
    kinds = cell_kinds(predictions) | cell_kinds(references)
    of_numbers = bool(metrics) and all(name in METRICS for name in metrics)
    return kinds == {"number"} or (kinds <= {"number", "digits"} and (delimited or of_numbers))


def _numbers(predictions: Array, references: Array, column: str, metrics: Sequence[str], file: str) -> list[Score]:
    whole = all(np.array_equal(values, np.round(values)) for values in (predictions, references))
    found = []
    for name in metrics or (("accuracy", "macro_f1") if whole else ("pearson", "spearman")):
        if name not in METRICS:
            raise unknown(f"metric of the numbers in {file!r}:", name, METRICS)
        metric = METRICS[name]
        if metric.of_logits:
            raise UsageError(f"{file!r}: {name} is of logits, which the file does not hold")
        if metric.binary and max(predictions.max(), references.max()) > 1:
            raise UsageError(f"{file!r}: {name} is of two classes, 0 and 1; macro_f1 is of more")
        ours, right = predictions, references
        if not metric.regression:
            for name_of, values in (("prediction", ours), (column, right)):
                if not np.isfinite(values).all():
                    row = int(np.flatnonzero(~np.isfinite(values))[0])
                    raise UsageError(f"{file!r}: row {row}: the {name_of} {values[row]} is no class")
            if not whole:
                raise UsageError(f"{file!r}: {name} is of classes, and these numbers are not whole")
            if min(ours.min(), right.min()) < 0:
                raise UsageError(f"{file!r}: classes are counted from 0")
            if max(ours.max(), right.max()) >= MOST_CLASS:
                raise UsageError(f"{file!r}: classes are whole numbers below 2 to the power of 53")
            ours, right = _counted(ours, right, metric, file)
        low, high = example_interval(name, metric.compute, ours, right, metric.of_counts)
        found.append(replace(score(metric, ours, right), low=low, high=high))
    return found


def _counted(ours: Array, right: Array, metric: Metric, file: str) -> tuple[Array, Array]:
    """Classes by their places among those that occur, so that a great number stands for no table of its size."""
    if metric.binary:
        return ours.astype(np.int64), right.astype(np.int64)
    classes, places = np.unique(np.concatenate([ours, right]), return_inverse=True)
    if len(classes) > MOST_CLASSES:
        raise UsageError(f"{file!r}: {len(classes):,} different classes (accepted: up to {MOST_CLASSES:,})")
    return places[: len(ours)], places[len(ours) :]


def _texts(
    predictions: Sequence[object],
    references: Sequence[object],
    column: str,
    metrics: Sequence[str],
    language: str,
    file: str,
) -> tuple[list[Score], tuple[str, ...]]:
    """The scores of texts, and what must be known to read them."""
    for name in metrics:
        if name in METRICS:
            raise _no_number(name, {"prediction": predictions, column: references}, metrics, file)
    written = [_text(cell, f"{file!r}: row {row}", "prediction") for row, cell in enumerate(predictions)]
    known = []
    for row, value in enumerate(references):
        where = f"{file!r}: row {row}"
        if column == "references" and isinstance(value, str):
            value = _listed(value, where)
        if column == "reference":
            known.append([_text(value, where, column)])
        elif isinstance(value, list | tuple | np.ndarray) and len(value):
            known.append([_text(text, where, column) for text in value])
        else:
            raise UsageError(
                f"{where} has {describe_cell(value)} in column {column!r}, where a list of texts is asked for"
            )
    scores, _ = score_texts(metrics or OF_TEXTS, written, known, language)
    return scores, notes_on_words(metrics or OF_TEXTS, written, known, language)


def _no_number(name: str, columns: Mapping[str, Sequence[object]], metrics: Sequence[str], file: str) -> UsageError:
    """The error for a metric of numbers in a file that is read as texts: for its first cell that is none, or others."""
    others = [other for other in metrics if other not in METRICS]
    if others:
        return UsageError(f"{file!r}: {name} is of numbers, and {others[0]} of texts: ask for them one after the other")
    for column, cells in columns.items():
        for row, cell in enumerate(cells):
            if cell_kind(cell) not in ("number", "digits"):
                more = "; write decimals after a point" if has_comma(cell) else ""
                if not METRICS[name].regression:
                    more = "; classes are numbers from 0 on, and exact_match compares names"
                return UsageError(
                    f"{file!r}: {name} is of numbers, and row {row} has {describe_cell(cell)} "
                    f"in column {column!r}{more}"
                )
    return UsageError(f"{file!r}: {name} is of numbers, and this file is read as texts")


def _text(cell: object, where: str, column: str) -> str:
    """A cell that is a text."""
    if not isinstance(cell, str):
        raise not_text_error(cell, where, column)
    return check_text(cell, where, column)
