"""Predict classes, scores and embeddings of a split in one pass, and score them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from kdalign.data.batches import collate
from kdalign.data.epochs import rows_in_order
from kdalign.data.tasks import ClassificationTask
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import NotFinite
from kdalign.evaluation.metric_names import AGREEMENT
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Score, agreement_metric, score
from kdalign.metrics.intervals import example_interval
from kdalign.metrics.retrieval import pack_ranks, ranks
from kdalign.models.architecture import joint_width
from kdalign.models.capture import inference_mode, pooled
from kdalign.models.inputs import accepted_inputs
from kdalign.models.sharding import needs_every_rank
from kdalign.observer import ProgressCallback, no_progress
from kdalign.ranks import share_batches
from kdalign.runs.prediction_table import Predictions

ROWS_AT_ONCE = 64
"""Texts of a batch that is scored."""


def predict(
    model: PreTrainedModel,
    order: Sequence[int],
    encoded: TokenizedSplit,
    task: ClassificationTask,
    batch_size: int = ROWS_AT_ONCE,
    progress: ProgressCallback = no_progress,
) -> Predictions:
    """Predict a split in one pass, in the model's own precision; its mode is restored afterwards. Ranks share it.

    Args:
        model: a classifier.
        order: for each of the task's labels, the index of the model's output.
        encoded: the split.
        task: the task.
        batch_size: examples of a batch.
        progress: called with the number of examples read, and of all.

    Raises:
        NotFinite: logits are NaN or infinite, though one could still be the greatest.
    """
    device = next(model.parameters()).device
    outputs = torch.tensor(order, device=device)

    def read(rows: list[int]) -> Array:
        inputs = accepted_inputs(model, collate(encoded, rows).to(device).inputs)
        found: Array = model(**inputs).logits.index_select(-1, outputs).float().cpu().numpy()
        return found

    logits = np.empty((len(encoded), len(order)), dtype=np.float32)
    _fill(logits, model, rows_in_order(encoded, batch_size), read, progress)
    check_finite(logits, "logits")
    return Predictions(logits, logits[:, 0] if task.regression else logits.argmax(axis=1))


def _fill(
    values: Array,
    model: PreTrainedModel,
    batches: Iterable[list[int]],
    read: Callable[[list[int]], Array],
    progress: ProgressCallback,
) -> None:
    """Fill an array with what a model gives for the rows of each batch."""
    done = 0
    with inference_mode(model):
        for rows, found in share_batches(batches, read, in_step=needs_every_rank(model)):
            values[rows] = found
            done += len(rows)
            progress(done, len(values))


def check_finite(rows: Array, what: str) -> None:
    """Refuse a model's outputs that are NaN or infinite.

    A number may be -inf, as of a class that is never predicted, where another is finite.

    Args:
        rows: (examples, outputs).
        what: name of the outputs, for the error.

    Raises:
        NotFinite: some examples have NaN, infinity, or nothing but -inf.
    """
    bad = np.isnan(rows).any(axis=1) | np.isposinf(rows).any(axis=1) | ~np.isfinite(rows).any(axis=1)
    if bad.any():
        raise NotFinite(f"{int(bad.sum()):,} of {len(rows):,} examples have {what} that are NaN or infinite")


def embed(
    model: PreTrainedModel, encoded: TokenizedSplit, batch_size: int = 64, progress: ProgressCallback = no_progress
) -> Array:
    """Compute the embedding of every row, (rows, width), in one pass in the model's own precision. Ranks share it."""
    device = next(model.parameters()).device

    def read(rows: list[int]) -> Array:
        batch = collate(encoded, rows).to(device)
        features = model(**accepted_inputs(model, batch.inputs)).last_hidden_state
        return pooled(features, batch.real).float().cpu().numpy()

    embeddings = np.empty((len(encoded), int(model.config.hidden_size)), dtype=np.float32)
    _fill(embeddings, model, rows_in_order(encoded, batch_size), read, progress)
    return embeddings


def compare_pairs(
    model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
) -> Predictions:
    """Compute the cosines of pairs: first texts are the first half of the rows, second texts the other half."""
    vectors = embed(model, encoded, progress=progress).astype(np.float64)
    check_finite(np.abs(vectors), "embeddings")
    # A vector of zeros has no direction, and a cosine of 0 with every other.
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    first, second = np.split(unit, 2)
    cosines = np.sum(first * second, axis=1)
    return Predictions(cosines[:, None], cosines)


def retrieve(
    model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress, batch_size: int = 64
) -> Predictions:
    """Rank all texts for each image, and all images for each text, by the cosine of a dual encoder's embeddings.

    Equal texts answer alike, and so do equal images: what differs by its row alone cannot be told apart.

    Raises:
        NotFinite: embeddings are NaN or infinite.
    """
    device, media = next(model.parameters()).device, encoded.media
    assert media is not None, "pairs have images"

    def read(rows: list[int]) -> Array:
        output = model(**accepted_inputs(model, collate(encoded, rows).to(device).inputs))
        return torch.stack([output.image_embeds, output.text_embeds], dim=1).float().cpu().numpy()

    embeddings = np.empty((len(encoded), 2, joint_width(model.config)), dtype=np.float32)
    _fill(embeddings, model, rows_in_order(encoded, batch_size), read, progress)
    check_finite(np.abs(embeddings).sum(axis=1), "embeddings")
    images, texts = embeddings[:, 0].astype(np.float64), embeddings[:, 1].astype(np.float64)
    same_text = np.unique(_padded(encoded), axis=0, return_inverse=True)[1].ravel()
    same_image = np.unique(media.rows.digests, return_inverse=True)[1]
    found = np.empty((2, len(encoded)), dtype=np.int64)
    for start in range(0, len(encoded), _PAIRS_AT_ONCE):
        rows = slice(start, start + _PAIRS_AT_ONCE)
        right = (same_text[rows, None] == same_text) | (same_image[rows, None] == same_image)
        found[0, rows] = ranks(images[rows] @ texts.T, right)
        found[1, rows] = ranks(texts[rows] @ images.T, right)
    packed = pack_ranks(*found)
    return Predictions(packed[:, None], packed)


_PAIRS_AT_ONCE = 512


def _padded(encoded: TokenizedSplit) -> Array:
    """Token ids of all rows, (rows, time), -1 for padding."""
    ids = encoded.token_rows["input_ids"]
    padded = np.full((len(encoded), int(ids.lengths.max())), -1, dtype=np.int64)
    for row in range(len(encoded)):
        tokens = ids.array(row)
        padded[row, : len(tokens)] = tokens
    return padded


def score_all(
    task: ClassificationTask,
    predictions: Array,
    references: Array,
    metrics: Sequence[str],
    interval: bool = True,
    logits: Array | None = None,
) -> list[Score]:
    """Compute metrics of a split, each with its 95 % interval over examples; some are of ``logits``."""
    scores = []
    for name in metrics:
        metric = task.metric(name)
        assert logits is not None or not metric.of_logits, "metrics of logits need logits"
        answers = logits if metric.of_logits and logits is not None else predictions
        result = score(metric, answers, references)
        if metric.binary and task.labels:
            result = replace(result, note="; ".join(filter(None, [f"of the class {task.labels[1]!r}", result.note])))
        if interval and result.value is not None:
            low, high = example_interval(name, metric.compute, answers, references, metric.of_counts, metric.of_rows)
            result = replace(result, low=low, high=high)
        scores.append(result)
    return scores


def agreement(student: Array, teacher: Array, interval: bool = True, how: str = "") -> Score:
    """Compute the agreement of student and teacher (``agreement_metric``); ``how`` begins its signature."""
    metric = agreement_metric(student, how)
    result = score(metric, student, teacher)
    signature = "; ".join(filter(None, [how, result.signature]))
    reason = result.reason.replace("references", "teacher's answers")
    result = replace(result, metric=AGREEMENT, signature=signature, reason=reason)
    if not interval or result.value is None:
        return result
    low, high = example_interval(metric.name, metric.compute, student, teacher, metric.of_counts, metric.of_rows)
    return replace(result, low=low, high=high)
