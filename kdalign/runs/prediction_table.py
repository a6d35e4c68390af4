"""What was kept of a model's answers to a split, read from its parquet file and checked: it may be a stranger's.

Classes and scores lie in the columns ``prediction``, ``label``, ``teacher``, ``logit/NAME`` and ``teacher_logit/NAME``;
likelihoods in ``nll``, ``tokens``, ``best``, ``teacher_nll`` and ``teacher_best``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdalign.data.tables import read_table
from kdalign.errors import UsageError, library_errors
from kdalign.files import check_regular
from kdalign.metrics.arrays import Array

if TYPE_CHECKING:
    import pandas as pd

MOST_VALUES = 2**28
"""Numbers of a file that are read (2 GB): equal ones take no room in a file, and each takes its own in memory."""
MOST_CLASSES = 10_000
"""Where nothing else says how many there are: tables of confusion have the square of it."""
_ANSWERS = ("prediction", "label", "teacher")
_LIKELIHOODS = ("nll", "teacher_nll")
_TOKENS = ("best", "teacher_best")


def read_predictions(file: Path, n: int | None = None) -> "pd.DataFrame":
    """The table of answers in a file.

    Args:
        file: parquet.
        n: examples that it has answers to, where that is known; a long text has several rows of likelihoods.

    Raises:
        UsageError: it is no parquet file, is too large, or a column holds something else than such answers.
    """
    where = repr(str(file))
    _check_size(file, where)
    table = read_table(file)
    check_answers(table, where, n)
    return table


def check_answers(table: "pd.DataFrame", where: str, n: int | None = None) -> None:
    """Refuse a table that does not hold answers to a split.

    Args:
        table: as it was read.
        where: its file, for error lines.
        n: as in ``read_predictions``; what a record counts has labels, too.

    Raises:
        UsageError: as in ``read_predictions``.
    """
    names = list(map(str, table.columns))
    if "prediction" not in names and not {"nll", "tokens"} <= set(names):
        raise UsageError(f"{where} keeps no answers: it has no column 'prediction', and not 'nll' and 'tokens'")
    if n is not None and "prediction" in names and len(table) != n:
        raise UsageError(f"{where} has answers to {len(table):,} examples, and the record counts {n:,}")
    if n is not None and "prediction" in names and "label" not in names:
        raise UsageError(f"{where} has no column 'label': answers to a split that was scored have labels beside them")
    for name in names:
        if name in (*_ANSWERS, *_LIKELIHOODS, "tokens") or name.startswith(("logit/", "teacher_logit/")):
            _check_numbers(table[name].to_numpy(), name, where)
    _check_classes(table, where)
    _check_tokens(table, where)


def _check_size(file: Path, where: str) -> None:
    import pyarrow.parquet as pq

    check_regular(file)
    with library_errors(f"{where} is not a parquet file"), file.open("rb") as opened:
        facts = pq.ParquetFile(opened).metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        count = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
    if max(count, facts.num_rows) > MOST_VALUES:
        raise UsageError(f"{where} holds {count:,} numbers; at most {MOST_VALUES:,} are read")


def _check_numbers(values: Array, name: str, where: str) -> None:
    if values.dtype.kind not in "iuf":
        raise UsageError(f"{where}: column {name!r} does not hold numbers")


def _check_classes(table: "pd.DataFrame", where: str) -> None:
    """Refuse class numbers that are none of the classes."""
    logits = sum(str(name).startswith("logit/") for name in table.columns)
    for name in (name for name in _ANSWERS if name in table.columns):
        values = table[name].to_numpy()
        if values.dtype.kind == "f" and logits < 2:
            continue  # scores
        classes = logits if logits > 1 else MOST_CLASSES
        if values.dtype.kind == "f" or (len(values) and (values.min() < 0 or values.max() >= classes)):
            raise UsageError(f"{where}: column {name!r} holds other numbers than those of {classes:,} classes")


def _check_tokens(table: "pd.DataFrame", where: str) -> None:
    """Refuse rows whose likeliest tokens are not as many as their tokens."""
    if "tokens" not in table.columns:
        return
    tokens = table["tokens"].to_numpy()
    if tokens.dtype.kind == "f" or (len(tokens) and tokens.min() < 0):
        raise UsageError(f"{where}: column 'tokens' does not count tokens")
    for name in (name for name in _TOKENS if name in table.columns):
        for row, (best, count) in enumerate(zip(table[name], tokens, strict=True), 1):
            if not isinstance(best, np.ndarray) or best.dtype.kind not in "iu" or best.shape != (count,):
                raise UsageError(f"{where}, row {row}: {name!r} does not hold its {count:,} tokens")
