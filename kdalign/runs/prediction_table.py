"""A split's predictions and the parquet file that keeps them: names, types and checks of every column.

=======================  =========================  ===================================================
column                   value in a row             written for
=======================  =========================  ===================================================
``prediction``           class number or score      classes, scores, cosines: one row an example
``label``                class number or score      the same, if the split has labels
``teacher``              class number or score      the same, if there is a teacher
``logit/NAME``           float                      the same, one column an output
``teacher_logit/NAME``   float                      classes, if the teacher's logits are known
``nll``                  nats                       language models: one row a window of text
``tokens``               number of target tokens    the same
``best``                 likeliest tokens, a list   the same
``teacher_nll``          nats                       the same, if the teacher shares the tokenizer
``teacher_best``         likeliest tokens, a list   the same
``agreed``               tokens at which both       the same, in archives: in place of both lists
                         likeliest are equal
``text``                 number of the text         totals by text: with ``nll`` and ``tokens`` alone
``written``              text                       transcripts: one row a sound
``references``           texts, a list              the same
``teacher_written``      text                       the same, if the teacher transcribes, too
``language``             code, or empty             the same
=======================  =========================  ===================================================

A file may come from a stranger: ``read_predictions`` checks it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.tables import read_table
from kdalign.errors import UsageError, library_errors
from kdalign.files import atomic_file, check_regular
from kdalign.metrics.arrays import Array

if TYPE_CHECKING:
    import pandas as pd

    from kdalign.data.tasks import ClassificationTask

MOST_VALUES = 2**28
"""Limit of numbers in a file (2 GB in memory): repeated numbers take no space in the file, but each does in memory."""
MOST_CLASSES = 10_000
"""Limit of classes in a file without logits: confusion tables have the square of it."""

PREDICTION, LABEL, TEACHER = "prediction", "label", "teacher"
LOGIT = "logit/"
NLL, TOKENS, BEST, AGREED, TEXT = "nll", "tokens", "best", "agreed", "text"
WRITTEN, REFERENCES, LANGUAGE = "written", "references", "language"
OF_TEACHER = "teacher_"
"""Prefix of the teacher's ``logit/NAME``, ``nll``, ``best`` and ``written``."""

_TEXTS = (WRITTEN, REFERENCES, OF_TEACHER + WRITTEN, LANGUAGE)
ARCHIVED = (PREDICTION, LABEL, TEACHER, NLL, TOKENS, OF_TEACHER + NLL, AGREED, *_TEXTS)
"""Columns that an ablation's archive keeps."""
SHARED = (LABEL, TEACHER, TOKENS, OF_TEACHER + NLL, REFERENCES, OF_TEACHER + WRITTEN, LANGUAGE)
"""Those of them that are equal in runs on the same data with the same teacher."""
_VALUES = (PREDICTION, LABEL, TEACHER)


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on a split, in the split's order.

    Attributes:
        logits: (examples, outputs) in the task's label order.
        values: (examples,) class numbers, or scores.
    """

    logits: Array
    values: Array


@dataclass(frozen=True)
class TokenPredictions:
    """A language model's predictions on a split, row by row in the split's order.

    Attributes:
        nll: (rows,) negative log-likelihood of a row's target tokens, in nats.
        tokens: (rows,) number of target tokens.
        best: (all target tokens,) the likeliest token at each.
    """

    nll: Array
    tokens: Array
    best: Array


@dataclass(frozen=True)
class ModelColumns:
    """One model's columns of a prediction table; a column that is not kept is None."""

    frame: "pd.DataFrame"
    prefix: str

    @property
    def values(self) -> Array | None:
        """Class numbers or scores, (examples,)."""
        return self._column(TEACHER if self.prefix else PREDICTION)

    @property
    def logits(self) -> Array | None:
        """Logits, (examples, outputs), in the order of the columns."""
        names = self._logit_columns()
        return self.frame[names].to_numpy() if names else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits' outputs: classes, or the one score."""
        return tuple(name.removeprefix(self.prefix + LOGIT) for name in self._logit_columns())

    @property
    def nll(self) -> Array | None:
        """Negative log-likelihoods of rows, (rows,), in nats."""
        return self._column(self.prefix + NLL)

    @property
    def best(self) -> Array | None:
        """Likeliest tokens, (rows,) of arrays."""
        return self._column(self.prefix + BEST)

    @property
    def written(self) -> list[str] | None:
        """Texts, (rows,)."""
        name = self.prefix + WRITTEN
        return list(self.frame[name]) if name in self.frame.columns else None

    def _column(self, name: str) -> Array | None:
        return self.frame[name].to_numpy() if name in self.frame.columns else None

    def _logit_columns(self) -> list[str]:
        return [str(name) for name in self.frame.columns if str(name).startswith(self.prefix + LOGIT)]


@dataclass(frozen=True)
class PredictionTable:
    """A split's kept predictions: a student's and, if it has one, its teacher's."""

    frame: "pd.DataFrame"

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def of_tokens(self) -> bool:
        """True for a language model's likelihoods, false for classes and scores."""
        return NLL in self.frame.columns

    @property
    def of_texts(self) -> bool:
        """True for written texts with their references."""
        return WRITTEN in self.frame.columns

    @property
    def references(self) -> list[list[str]]:
        """Reference texts of each row of written ones."""
        return [list(known) for known in self.frame[REFERENCES]]

    @property
    def language(self) -> str:
        """Language code of written texts; empty if unknown."""
        return str(self.frame[LANGUAGE].iloc[0]) if len(self.frame) else ""

    @property
    def student(self) -> ModelColumns:
        """The student's columns, or those of any one model."""
        return ModelColumns(self.frame, "")

    @property
    def teacher(self) -> ModelColumns:
        """The teacher's columns."""
        return ModelColumns(self.frame, OF_TEACHER)

    @property
    def labels(self) -> Array | None:
        """Right class numbers or scores, (examples,); None for a split without labels."""
        return self.frame[LABEL].to_numpy() if LABEL in self.frame.columns else None

    @property
    def tokens(self) -> Array:
        """Target tokens of each row of likelihoods, (rows,)."""
        counts: Array = self.frame[TOKENS].to_numpy()
        return counts

    @property
    def agreed(self) -> Array | None:
        """Target tokens of each row at which the student's likeliest token is the teacher's, (rows,)."""
        ours, theirs = self.student.best, self.teacher.best
        if ours is None or theirs is None:
            kept: Array | None = self.frame[AGREED].to_numpy() if AGREED in self.frame.columns else None
            return kept
        return np.array([int(np.sum(a == b)) for a, b in zip(ours, theirs, strict=True)], dtype=np.int64)


def write_predictions(
    file: Path, task: "ClassificationTask", student: Predictions, labels: Array | None, teacher: Predictions | None
) -> None:
    """Write a split's predicted classes or scores, its labels and both models' logits as parquet."""
    columns: dict[str, Any] = {PREDICTION: student.values}
    if labels is not None:
        columns[LABEL] = labels
    if teacher is not None:
        columns[TEACHER] = teacher.values
    for number, name in enumerate(task.labels or (task.label,)):
        columns[f"{LOGIT}{name}"] = student.logits[:, number]
    if teacher is not None and teacher.logits.size:
        columns |= {f"{OF_TEACHER}{LOGIT}{name}": teacher.logits[:, number] for number, name in enumerate(task.labels)}
    write_columns(file, columns)


def write_token_predictions(file: Path, student: TokenPredictions, teacher: TokenPredictions | None) -> None:
    """Write a split's likelihoods and likeliest tokens as parquet, one row a window of text."""
    columns: dict[str, Any] = {TOKENS: student.tokens}
    for prefix, model in (("", student), (OF_TEACHER, teacher)):
        if model is not None:
            rows = np.split(model.best, np.cumsum(model.tokens)[:-1])
            columns |= {f"{prefix}{NLL}": model.nll, f"{prefix}{BEST}": rows}
    write_columns(file, columns)


def write_likelihoods(file: Path, texts: Array, nll: Array, tokens: Array) -> None:
    """Write likelihoods summed by text as parquet.

    Args:
        file: parquet.
        texts: (rows,) number of the text that a row belongs to.
        nll: (rows,) nats.
        tokens: (rows,) number of target tokens.
    """
    import pandas as pd

    rows = pd.DataFrame({TEXT: texts, NLL: nll, TOKENS: tokens})
    write_columns(file, rows.groupby(TEXT, as_index=False).sum())


def read_teacher_predictions(file: Path) -> Predictions:
    """Read the teacher's predictions that ``write_predictions`` kept, with its logits if they were kept."""
    teacher = read_predictions(file).teacher
    if teacher.values is None:
        raise UsageError(f"{str(file)!r} does not keep the teacher's answers")
    logits = np.empty((len(teacher.values), 0)) if teacher.logits is None else teacher.logits
    return Predictions(logits.astype(np.float32), teacher.values)


def read_teacher_tokens(file: Path) -> TokenPredictions:
    """Read the teacher's predictions that ``write_token_predictions`` kept."""
    table = read_predictions(file)
    teacher = table.teacher
    if teacher.nll is None or teacher.best is None:
        raise UsageError(f"{str(file)!r} does not keep the teacher's answers")
    return TokenPredictions(teacher.nll, table.tokens, np.concatenate(list(teacher.best)))


def read_predictions(file: Path, n: int | None = None) -> PredictionTable:
    """Read a file of predictions and check it.

    Args:
        file: parquet.
        n: number of examples of the split, if known; a long text has several rows of likelihoods.

    Raises:
        UsageError: not a parquet file, too large, or a column that does not hold predictions.
    """
    where = repr(str(file))
    _check_size(file, where)
    frame = read_table(file)
    check_predictions(frame, where, n)
    return PredictionTable(frame)


def check_predictions(frame: "pd.DataFrame", where: str, n: int | None = None) -> None:
    """Refuse a data frame that does not hold a split's predictions.

    Args:
        frame: columns as they were read.
        where: its file, for error lines.
        n: as in ``read_predictions``; a split that a record counts has labels, too.

    Raises:
        UsageError: as in ``read_predictions``.
    """
    names = list(map(str, frame.columns))
    if WRITTEN in names:
        _check_texts(frame, where, n)
        return
    if PREDICTION not in names and not {NLL, TOKENS} <= set(names):
        raise UsageError(f"{where} keeps no answers: it has no column 'prediction', and not 'nll' and 'tokens'")
    if n is not None and PREDICTION in names and len(frame) != n:
        raise UsageError(f"{where} has answers to {len(frame):,} examples, and the record counts {n:,}")
    if n is not None and PREDICTION in names and LABEL not in names:
        raise UsageError(f"{where} has no column 'label': the answers to a split that was scored are kept with labels")
    for name in names:
        if name in (*_VALUES, NLL, OF_TEACHER + NLL, TOKENS, AGREED) or name.startswith((LOGIT, OF_TEACHER + LOGIT)):
            _check_numbers(frame[name].to_numpy(), name, where)
    _check_classes(frame, where)
    _check_tokens(frame, where)


def write_columns(file: Path, columns: "dict[str, Any] | pd.DataFrame") -> None:
    """Write columns of a split's predictions as parquet."""
    import pandas as pd

    with atomic_file(file) as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)


def _check_size(file: Path, where: str) -> None:
    import pyarrow.parquet as pq

    check_regular(file)
    with library_errors(f"{where} is not a parquet file"), file.open("rb") as stream:
        facts = pq.ParquetFile(stream).metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        count = sum(group.column(column).num_values for group in groups for column in range(group.num_columns))
    if max(count, facts.num_rows) > MOST_VALUES:
        raise UsageError(f"{where} holds {count:,} numbers; at most {MOST_VALUES:,} are read")


def _check_numbers(values: Array, name: str, where: str) -> None:
    if values.dtype.kind not in "iuf":
        raise UsageError(f"{where}: column {name!r} does not hold numbers")


def _check_texts(frame: "pd.DataFrame", where: str, n: int | None) -> None:
    """Refuse a table of written texts without a list of references for each."""
    if not {REFERENCES, LANGUAGE} <= set(frame.columns):
        raise UsageError(f"{where} keeps texts without their references or language")
    if n is not None and len(frame) != n:
        raise UsageError(f"{where} has texts of {len(frame):,} examples, and the record counts {n:,}")
    texts = [name for name in (WRITTEN, OF_TEACHER + WRITTEN, LANGUAGE) if name in frame.columns]
    for row, references in enumerate(frame[REFERENCES], 1):
        listed = isinstance(references, list | np.ndarray) and len(references) > 0
        if not listed or not all(isinstance(known, str) for known in references):
            raise UsageError(f"{where}, row {row}: 'references' does not hold a list of texts")
    for name in texts:
        if not all(isinstance(text, str) for text in frame[name]):
            raise UsageError(f"{where}: column {name!r} does not hold texts")


def _check_classes(frame: "pd.DataFrame", where: str) -> None:
    """Refuse class numbers outside the classes."""
    logits = sum(str(name).startswith(LOGIT) for name in frame.columns)
    for name in (name for name in _VALUES if name in frame.columns):
        values = frame[name].to_numpy()
        if values.dtype.kind == "f" and logits < 2:
            continue  # scores
        classes = logits if logits > 1 else MOST_CLASSES
        if values.dtype.kind == "f" or (len(values) and (values.min() < 0 or values.max() >= classes)):
            raise UsageError(f"{where}: column {name!r} holds other numbers than those of {classes:,} classes")


def _check_tokens(frame: "pd.DataFrame", where: str) -> None:
    """Refuse rows whose number of likeliest tokens differs from their number of tokens."""
    if TOKENS not in frame.columns:
        if AGREED in frame.columns:
            raise UsageError(f"{where}: column 'agreed' counts tokens, and there is no column 'tokens'")
        return
    tokens = frame[TOKENS].to_numpy()
    if tokens.dtype.kind == "f" or (len(tokens) and tokens.min() < 0):
        raise UsageError(f"{where}: column 'tokens' does not count tokens")
    agreed = frame[AGREED].to_numpy() if AGREED in frame.columns else tokens
    if agreed.dtype.kind == "f" or (agreed < 0).any() or (agreed > tokens).any():
        raise UsageError(f"{where}: column 'agreed' does not count some of the tokens")
    for name in (name for name in (BEST, OF_TEACHER + BEST) if name in frame.columns):
        for row, (best, count) in enumerate(zip(frame[name], tokens, strict=True), 1):
            if not isinstance(best, np.ndarray) or best.dtype.kind not in "iu" or best.shape != (count,):
                raise UsageError(f"{where}, row {row}: {name!r} does not hold its {count:,} tokens")
