"""Score a model on a split: one pass, every example once, predictions kept."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from kdalign.data.batches import TokenizedSplit, in_order
from kdalign.data.tasks import ClassificationTask
from kdalign.errors import NotFinite
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import METRICS, Score, score
from kdalign.metrics.intervals import example_interval
from kdalign.models.architecture import accepted_inputs
from kdalign.models.capture import inference_mode, pooled
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import Predictions


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
