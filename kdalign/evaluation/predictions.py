"""Score a model on a split: one pass, every example once, predictions kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdalign.data.batches import TokenizedSplit, in_order
from kdalign.data.tasks import ClassificationTask
from kdalign.errors import NotFinite, UsageError
from kdalign.files import atomic_file
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import METRICS, Score, score
from kdalign.metrics.intervals import example_interval
from kdalign.models.architecture import accepted_inputs
from kdalign.models.capture import inference_mode, pooled
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import read_predictions


@dataclass(frozen=True)
class Predictions:
    """A model's answers on a split, in the split's order.

    Attributes:
        logits: (examples, outputs) in the task's label order.
        values: class numbers, or scores.
    """

    logits: Array
    values: Array


def predict(
    model: PreTrainedModel,
    order: Sequence[int],
    encoded: TokenizedSplit,
    task: ClassificationTask,
    batch_size: int = 64,
    tell: ProgressCallback = no_progress,
) -> Predictions:
    """One forward pass over a split in the model's own precision; the model's mode is put back afterwards.

    Raises:
        NotFinite: logits that are no numbers, of which a class could still be the greatest.
    """
    device = next(model.parameters()).device
    outputs = torch.tensor(order, device=device)
    logits, done = np.empty((len(encoded), len(order)), dtype=np.float32), 0
    with inference_mode(model):
        for rows, batch in in_order(encoded, batch_size):
            inputs = accepted_inputs(model, batch.to(device).inputs)
            logits[rows] = model(**inputs).logits.index_select(-1, outputs).float().cpu().numpy()
            done += len(rows)
            tell(done, len(encoded))
    check_finite(logits, "logits")
    return Predictions(logits, logits[:, 0] if task.regression else logits.argmax(axis=1))


def check_finite(rows: Array, what: str) -> None:
    """Refuse answers of a model, (examples, numbers), that say nothing.

    A number may be -inf, as of a class that is never given, where another is finite.

    Raises:
        NotFinite: how many examples have NaN, infinity, or nothing but -inf.
    """
    bad = np.isnan(rows).any(axis=1) | np.isposinf(rows).any(axis=1) | ~np.isfinite(rows).any(axis=1)
    if bad.any():
        raise NotFinite(f"{int(bad.sum()):,} of {len(rows):,} examples have {what} that are NaN or infinite")


def embed(
    model: PreTrainedModel, encoded: TokenizedSplit, batch_size: int = 64, tell: ProgressCallback = no_progress
) -> Array:
    """The embedding of every row, (rows, width), in one pass in the model's own precision."""
    device = next(model.parameters()).device
    found, done = np.empty((len(encoded), int(model.config.hidden_size)), dtype=np.float32), 0
    with inference_mode(model):
        for rows, batch in in_order(encoded, batch_size):
            batch = batch.to(device)
            features = model(**accepted_inputs(model, batch.inputs)).last_hidden_state
            found[rows] = pooled(features, batch.real).float().cpu().numpy()
            done += len(rows)
            tell(done, len(encoded))
    return found


def compare_pairs(model: PreTrainedModel, encoded: TokenizedSplit, tell: ProgressCallback = no_progress) -> Predictions:
    """The cosines of pairs whose first texts are the first half of the rows, and whose second texts the other half."""
    vectors = embed(model, encoded, tell=tell).astype(np.float64)
    check_finite(np.abs(vectors), "embeddings")
    # A vector of zeros has no direction, and a cosine of 0 with every other.
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    first, second = np.split(unit, 2)
    cosines = np.sum(first * second, axis=1)
    return Predictions(cosines[:, None], cosines)


def score_all(
    task: ClassificationTask,
    predictions: Array,
    references: Array,
    metrics: Sequence[str],
    interval: bool = True,
    logits: Array | None = None,
) -> list[Score]:
    """The named metrics on a split, each with its 95 % interval over examples; some are of ``logits``."""
    found = []
    for name in metrics:
        metric = task.metric(name)
        assert logits is not None or not metric.of_logits, "whoever asks for such a metric has logits"
        answers = logits if metric.of_logits and logits is not None else predictions
        made = score(metric, answers, references)
        if metric.binary and task.labels:
            made = replace(made, note="; ".join(filter(None, [f"of the class {task.labels[1]!r}", made.note])))
        if interval and made.value is not None:
            low, high = example_interval(name, metric.compute, answers, references, metric.of_counts)
            made = replace(made, low=low, high=high)
        found.append(made)
    return found


def agreement(task: ClassificationTask, student: Array, teacher: Array, interval: bool = True) -> Score:
    """How far the student answers as the teacher does: the share of equal classes, or the scores' correlation."""
    metric = METRICS["pearson" if task.regression else "accuracy"]
    made = score(metric, student, teacher)
    made = replace(made, metric="agreement", reason=made.reason.replace("references", "teacher's answers"))
    if not interval or made.value is None:
        return made
    low, high = example_interval(metric.name, metric.compute, student, teacher, metric.of_counts)
    return replace(made, low=low, high=high)


def write_predictions(
    file: Path, task: ClassificationTask, student: Predictions, labels: Array | None, teacher: Predictions | None
) -> None:
    """Keep a split's predictions as parquet.

    Columns: ``prediction``, ``label``, ``teacher``, and for each output ``logit/NAME`` and, of classes, the teacher's
    ``teacher_logit/NAME``.
    """
    import pandas as pd

    columns: dict[str, Any] = {"prediction": student.values}
    if labels is not None:
        columns["label"] = labels
    if teacher is not None:
        columns["teacher"] = teacher.values
    for number, name in enumerate(task.labels or (task.label,)):
        columns[f"logit/{name}"] = student.logits[:, number]
    if teacher is not None and teacher.logits.size:
        columns |= {f"teacher_logit/{name}": teacher.logits[:, number] for number, name in enumerate(task.labels)}
    with atomic_file(file) as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)


def read_teacher(file: Path) -> Predictions:
    """The teacher's answers that ``write_predictions`` kept; logits of classes, where they were kept, too."""
    table = read_predictions(file)
    if "teacher" not in table.columns:
        raise UsageError(f"{str(file)!r} does not keep the teacher's answers")
    logits = table[[name for name in table.columns if name.startswith("teacher_logit/")]]
    return Predictions(logits.to_numpy(dtype=np.float32), table["teacher"].to_numpy())
