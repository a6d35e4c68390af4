"""Runs as paired tests read them: a record with its kept predictions, and these as outputs of a metric.

Reads records and kept predictions only; no model, no torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.tables import read_table
from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Score, agreement_metric, metrics_named
from kdalign.metrics.counts import Counts, References
from kdalign.metrics.significance import UndefinedDifference
from kdalign.metrics.system_outputs import LabelOutputs, SufficientStats, SystemOutputs
from kdalign.metrics.text import TEXT_METRICS, count_texts, without_nfc
from kdalign.runs.archive import ROUNDING
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import PredictionTable, read_predictions
from kdalign.runs.record import RunRecord, read_record
from kdalign.runs.seal import digest_of


@dataclass(frozen=True)
class ArmRun:
    """A finished run of an arm, with its predictions.

    Attributes:
        folder: the run folder, which keeps the predictions.
        archived: predictions by split and column, if an ablation's archive keeps them instead.
        texts: scores of texts that the student wrote, by metric, each with the evaluations that have it.
        counted: these texts as outputs, by metric, once they were counted.
    """

    record: RunRecord
    folder: RunFolder
    archived: Mapping[str, Mapping[str, Array]] | None = field(default=None, compare=False)
    texts: Mapping[str, tuple[Score, Sequence[Mapping[str, Any]]]] = field(default_factory=dict, compare=False)
    counted: dict[str, SystemOutputs] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, folder: RunFolder) -> "ArmRun":
        """Read a run from its folder.

        Raises:
            UsageError: nothing there, or an unfinished run.
        """
        return cls(read_record(folder.path), folder)

    @property
    def name(self) -> str:
        """The run's name in error lines and notes: its folder."""
        return str(self.folder.path)

    @property
    def split(self) -> str:
        """The split that stands for the task (MNLI's matched one)."""
        return self.record.split

    @property
    def scores(self) -> tuple[Score, ...]:
        """The student's scores on the split, the primary metric first."""
        return self.record.first_scores.student

    @cached_property
    def predictions(self) -> PredictionTable:
        """Kept predictions of the student and its teacher.

        Raises:
            UsageError: the file is gone, or holds no such predictions.
        """
        import pandas as pd

        if self.archived is not None:
            return PredictionTable(pd.DataFrame(self.archived[self.split]))
        file = self.folder.predictions(self.split)
        if not file.is_file():
            raise UsageError(f"run {self.name!r} has no {file.relative_to(self.folder.path)}, which paired tests need")
        return read_predictions(file, self.record.reported[self.split].n)

    @property
    def keeps_agreement(self) -> bool:
        """True if agreement with the teacher can be computed from what is kept."""
        table = self.predictions
        if table.of_tokens:
            return table.agreed is not None and table.teacher.nll is not None
        return table.teacher.values is not None or table.teacher.written is not None

    def has_teacher_of(self, other: "ArmRun") -> bool:
        """True if both teachers said the same of the same examples.

        An archive has a language model's likelihoods in place of its likeliest tokens, rounded to four digits.
        """
        ours, theirs = self.predictions.teacher, other.predictions.teacher
        if ours.best is not None and theirs.best is not None:
            return all(map(np.array_equal, ours.best, theirs.best))
        if ours.nll is not None and theirs.nll is not None:
            return bool(np.allclose(ours.nll, theirs.nll, rtol=2 * ROUNDING, atol=0, equal_nan=True))
        if ours.written is not None and theirs.written is not None:
            return ours.written == theirs.written
        return ours.values is not None and theirs.values is not None and np.array_equal(ours.values, theirs.values)


def metric_outputs(run: ArmRun, metrics: tuple[str, ...]) -> SystemOutputs:
    """A run's predictions as outputs of a metric, or of the mean of several.

    Raises:
        UndefinedDifference: the metrics cannot be computed from what the run keeps.
    """
    table = run.predictions
    if table.of_tokens:
        (metric,) = metrics
        return _likelihood_outputs(run, metric)
    if table.of_texts:
        return _written_outputs(run, metrics)
    known, missing = metrics_named(run.record.metrics)
    if any(name not in known for name in metrics):
        reason = f": {'; '.join(missing)}" if missing else ""
        raise UndefinedDifference(f"run {run.name!r}: {', '.join(metrics)} cannot be computed here{reason}")
    functions = tuple(known[name] for name in metrics)
    of_logits = any(metric.of_logits for metric in functions)
    values, labels = table.student.logits if of_logits else table.student.values, table.labels
    if values is None or labels is None or (of_logits and len(functions) > 1):
        raise UndefinedDifference(
            f"run {run.name!r}: {' and '.join(metrics)} cannot be computed from the kept predictions"
        )
    return LabelOutputs(functions, values, labels)


def _written_outputs(run: ArmRun, metrics: tuple[str, ...]) -> SystemOutputs:
    """A run's transcripts as outputs of a metric of texts."""
    table, written = run.predictions, run.predictions.student.written
    if len(metrics) > 1 or written is None or metrics[0] not in TEXT_METRICS:
        raise UndefinedDifference(f"run {run.name!r}: {' and '.join(metrics)} cannot be computed from kept transcripts")
    return _counted_outputs(count_texts(metrics[0], written, table.references, table.language), table.references)


def _counted_outputs(counts: Counts, references: References) -> SystemOutputs:
    """Counts of a metric of texts as outputs, whose examples are told apart by their references."""

    def value(sums: Array) -> Array:
        return np.array([counts.value(row) for row in sums])

    return SufficientStats(counts.rows, value, np.array([digest_of("\0".join(known)) for known in references]))


def _likelihood_outputs(run: ArmRun, metric: str) -> SystemOutputs:
    (score,) = (score for score in run.scores if score.metric == metric)
    tokens, nll = run.predictions.tokens, run.predictions.student.nll
    assert nll is not None, "a run of a language model keeps its likelihoods"
    if not score.n:
        raise UndefinedDifference(f"run {run.name!r}: {metric} is over no token")
    return SufficientStats(np.column_stack([nll, tokens]), _perplexity(int(tokens.sum()) / score.n, score.unit), tokens)


def _perplexity(tokens_per_unit: float, unit: str) -> Callable[[Array], Array]:
    """Perplexity, or bits, from sums (resamples, 2) of nll and tokens.

    Args:
        tokens_per_unit: tokens per token, word or byte that the perplexity is over; of the whole split, also if its
            rows are resampled.
        unit: unit of the score; ``bits`` leaves out the exponential.
    """

    def value(sums: Array) -> Array:
        nats = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0) * tokens_per_unit
        bits: Array = nats / math.log(2)
        perplexity: Array = np.exp(np.where(nats < 700, nats, np.nan))  # overflow is undefined
        return bits if unit == "bits" else perplexity

    return value


def agreement_outputs(run: ArmRun) -> SystemOutputs:
    """A run's agreement with its teacher as outputs, example by example."""
    if run.predictions.of_texts:
        return _text_agreement(run)
    return _token_agreement(run) if run.predictions.of_tokens else _label_agreement(run)


def _text_agreement(run: ArmRun) -> SystemOutputs:
    """Transcripts that are the teacher's, sound by sound."""
    ours, theirs = run.predictions.student.written, run.predictions.teacher.written
    assert ours is not None, "a run of transcripts keeps them"
    assert theirs is not None, "agreement is computed if the teacher's answers are kept"
    counts = count_texts("exact_match", ours, [(text,) for text in theirs])
    return _counted_outputs(counts, [(text,) for text in theirs])


def _label_agreement(run: ArmRun) -> SystemOutputs:
    predictions, teacher = run.predictions.student.values, run.predictions.teacher.values
    assert predictions is not None, "a run of classes or scores keeps them"
    assert teacher is not None, "agreement is computed if the teacher's answers are kept"
    recorded = run.record.first_scores.agreement
    metric = agreement_metric(predictions, "" if recorded is None else recorded.signature)
    return LabelOutputs((metric,), predictions, teacher)


def _token_agreement(run: ArmRun) -> SystemOutputs:
    """Target tokens at which the student's likeliest token is the teacher's, row by row."""
    tokens, agreed = run.predictions.tokens, run.predictions.agreed
    assert agreed is not None, "agreement is computed if the teacher's answers are kept"

    def value(sums: Array) -> Array:
        shares: Array = 100 * np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
        return shares

    return SufficientStats(np.column_stack([agreed, tokens]).astype(float), value, tokens)


def text_outputs(run: ArmRun, metric: str) -> SystemOutputs:
    """A run's texts as outputs of a metric, counted again from the file of texts.

    Raises:
        UndefinedDifference: the metric is one of a whole corpus, its library is missing or of another version, or the
            file is not there.
        UsageError: the file holds no texts, or its texts give another score than their evaluation names.
    """
    if metric in run.counted:
        return run.counted[metric]
    score, results = run.texts[metric]
    file = next((Path(result["texts"]) for result in results if result["texts"]), None)
    if file is None:
        raise UndefinedDifference(f"run {run.name!r}: its texts are not beside their evaluation")
    predictions, references = _read_texts(file)
    try:
        counts = count_texts(metric, predictions, references, results[0].get("language", ""))
    except UsageError as error:
        raise UndefinedDifference(f"run {run.name!r}: {error}") from None
    if not counts.resampled:
        raise UndefinedDifference("it is of a whole corpus, and nothing can be resampled")
    if counts.signature != without_nfc(score.signature):
        raise UndefinedDifference(f"run {run.name!r}: scored by {score.signature}, here it would be {counts.signature}")
    found = counts.value(counts.rows.sum(axis=0))
    if score.value is None or not math.isclose(found, score.value, rel_tol=1e-6, abs_tol=1e-9):
        raise UsageError(f"the texts in {str(file)!r} have {metric} {found:.6g}, and their evaluation {score.value}")
    run.counted[metric] = _counted_outputs(counts, references)
    return run.counted[metric]


def _read_texts(file: Path) -> tuple[list[str], list[list[str]]]:
    """Predictions and references of a file of generated texts."""
    table = read_table(file)
    if not {"prediction", "references"} <= set(table.columns) or not len(table):
        raise UsageError(f"{str(file)!r} holds no generated texts with their references")
    predictions, references = list(table["prediction"]), list(table["references"])
    for row, (text, known) in enumerate(zip(predictions, references, strict=True)):
        listed = isinstance(known, list | np.ndarray) and len(known) > 0 and all(isinstance(one, str) for one in known)
        if not isinstance(text, str) or not listed:
            raise UsageError(f"{str(file)!r}, row {row}: it holds no prediction with a list of references")
    return predictions, [list(known) for known in references]
