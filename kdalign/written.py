"""Score predictions that lie in a file, whoever made them."""

import json
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdalign.errors import UsageError, did_you_mean, unknown
from kdalign.languages import language_code
from kdalign.metrics import METRICS, Score, expanded, score
from kdalign.results import Evaluation
from kdalign.statistics import example_interval
from kdalign.tasks.data import read_table
from kdalign.text_metrics import TEXT_METRICS, notes_on_words, score_texts

if TYPE_CHECKING:
    import pandas as pd

OF_TEXTS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "cer", "wer", "exact_match")
"""What texts are scored by where nobody says."""
FORMATS = ("parquet", "csv", "tsv", "jsonl")


def score_file(file: str, metrics: Sequence[str] | None = None, language: str | None = None) -> Evaluation:
    """Score a file with the columns ``prediction`` and ``reference``, or ``references``, a list for each row.

    Texts are scored by metrics of texts, numbers (classes or scores) by metrics of classes and scores.

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
    if place.suffix.lstrip(".") not in FORMATS:
        raise UsageError(f"{file!r}: predictions are read from {', '.join(FORMATS)} files")
    metrics = expanded(metrics or ())
    of_texts = any(name in TEXT_METRICS for name in metrics)
    table = read_table(place, ("prediction", "reference") if of_texts else ())
    column = next((name for name in ("references", "reference") if name in table.columns), None)
    if column is None or "prediction" not in table.columns:
        raise UsageError(
            f"{file!r} needs the columns prediction and reference (or references), and has "
            f"{', '.join(map(str, table.columns)) or 'none'}"
        )
    if len(table) == 0:
        raise UsageError(f"{file!r} has no rows")
    for name in ("prediction", column):
        if table[name].isna().any():
            raise UsageError(f"{file!r}: row {int(np.flatnonzero(table[name].isna())[0])} has no {name}")
    notes: tuple[str, ...] = ()
    if _are_numbers(table, column, metrics):
        if language:
            raise UsageError(
                f"--language is for texts, and {file!r} holds numbers (texts for a metric such as exact_match)"
            )
        scores = _numbers(table, column, metrics, file)
    else:
        scores, notes = _texts(table, column, metrics, language, file)
    return Evaluation(
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
    try:
        found = literal_eval(value) if not value.startswith('["') else json.loads(value)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list):
        raise UsageError(f'{where} has no list in \'references\', such as ["one", "other"]; given {value[:60]!r}')
    return found


def _are_numbers(table: "pd.DataFrame", column: str, metrics: Sequence[str]) -> bool:
    """Numbers are classes or scores, unless a metric of texts is asked for."""
    import pandas as pd

    numeric = all(pd.api.types.is_numeric_dtype(table[name]) for name in ("prediction", column))
    return numeric and not any(name in TEXT_METRICS for name in metrics)


def _numbers(table: "pd.DataFrame", column: str, metrics: Sequence[str], file: str) -> list[Score]:
    predictions, references = (table[name].to_numpy() for name in ("prediction", column))
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
        if not metric.regression and not whole:
            raise UsageError(f"{file!r}: {name} is of classes, and these numbers are not whole")
        ours, right = predictions, references
        if not metric.regression:
            for name_of, values in (("prediction", ours), (column, right)):
                if not np.isfinite(values).all():
                    row = int(np.flatnonzero(~np.isfinite(values))[0])
                    raise UsageError(f"{file!r}: row {row}: the {name_of} {values[row]} is no class")
            ours, right = ours.astype(np.int64), right.astype(np.int64)
            if min(ours.min(), right.min()) < 0:
                raise UsageError(f"{file!r}: classes are counted from 0")
        low, high = example_interval(name, metric.compute, ours, right, metric.of_counts)
        found.append(replace(score(metric, ours, right), low=low, high=high))
    return found


def _texts(
    table: "pd.DataFrame", column: str, metrics: Sequence[str], language: str, file: str
) -> tuple[list[Score], tuple[str, ...]]:
    """The scores of texts, and what must be known to read them."""
    references = []
    for row, value in enumerate(table[column]):
        if column == "references" and isinstance(value, str):
            value = _listed(value, f"{file!r}: row {row}")
        known = [value] if not isinstance(value, list | tuple | np.ndarray) else list(value)
        if not known or not all(isinstance(text, str | int | float) for text in known):
            raise UsageError(f"{file!r}: row {row} has no text in {column!r}")
        references.append([str(text) for text in known])
    for name in metrics:
        if name in METRICS:
            raise UsageError(f"{file!r}: {name} is of numbers, and predictions are texts")
    texts = [str(text) for text in table["prediction"]]
    scores, _ = score_texts(metrics or OF_TEXTS, texts, references, language)
    return scores, notes_on_words(metrics or OF_TEXTS, texts, references, language)
