"""Predictions of several models as one: their mixture, or the model that each row belongs to."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.evaluation.adapters.base import AnyPredictions, TaskAdapter
from kdalign.evaluation.likelihood import predict_token_mixture
from kdalign.metrics.arrays import Array
from kdalign.models.heads import HeadKind
from kdalign.models.mixtures import Mixing, mixed_logits
from kdalign.runs.prediction_table import Predictions


def predict_ensemble(
    adapter: TaskAdapter, models: Sequence[PreTrainedModel], encoded: Sequence[TokenizedSplit], mixing: Mixing
) -> tuple[AnyPredictions, list[AnyPredictions]]:
    """Predict a split by several models and by all of them as one; no label is read.

    Distributions over classes or tokens are mixed at temperature 1, as a student is taught to answer; scores and
    cosines are averaged. Where rows belong to one model each (``TokenizedSplit.taught_by``), its answer is taken.

    Args:
        adapter: the task's.
        models: models with one tokenizer if they predict tokens.
        encoded: for each model, the split in its tokens.
        mixing: the models' weights.

    Returns:
        The predictions of all as one, and each model's own.
    """
    if adapter.predicts_tokens:
        mixture, *each = predict_token_mixture(models, encoded[0], mixing)
        return mixture, list(each)
    own = [adapter.predict(model, each) for model, each in zip(models, encoded, strict=True)]
    return _mixed(own, adapter.head is HeadKind.CLASSIFIER, encoded[0].taught_by, mixing), own


def _mixed(own: Sequence[Predictions], classifier: bool, taught_by: Array | None, mixing: Mixing) -> Predictions:
    """Mix predictions of classes, or average those of scores and cosines."""
    logits = np.stack([each.logits for each in own])  # (models, examples, outputs)
    if taught_by is not None:
        chosen = logits[taught_by, np.arange(logits.shape[1])]
    elif classifier and logits.shape[2] > 1:
        tensors = [torch.from_numpy(np.ascontiguousarray(each)).float() for each in logits]
        chosen = mixed_logits(tensors, mixing.weights(tensors, None), 1.0).numpy()
    else:
        chosen = np.tensordot(np.array(mixing.shares), logits, axes=1).astype(logits.dtype)
    return Predictions(chosen, chosen.argmax(axis=1) if chosen.shape[1] > 1 else chosen[:, 0])
