"""Adapters of the kinds of task: how examples become tokens, which head predicts, and how predictions are scored.

``base`` is the interface, with what a new kind of task must implement; ``classification`` is for classes and scores,
``language_modeling`` for tokens, ``ctc`` for transcripts by labels of frames, ``embedding`` for texts as vectors,
``dual_encoder`` for images with texts.
"""

from dataclasses import replace

from kdalign.data.tasks import AnyTask, ClassificationTask
from kdalign.evaluation.adapters.base import AnyPredictions, TaskAdapter
from kdalign.evaluation.adapters.classification import ClassificationAdapter
from kdalign.evaluation.adapters.ctc import CTCAdapter
from kdalign.evaluation.adapters.dual_encoder import DualEncoderAdapter
from kdalign.evaluation.adapters.embedding import EmbeddingAdapter
from kdalign.evaluation.adapters.language_modeling import LanguageModelingAdapter

__all__ = [
    "AnyPredictions",
    "CTCAdapter",
    "ClassificationAdapter",
    "DualEncoderAdapter",
    "EmbeddingAdapter",
    "LanguageModelingAdapter",
    "TaskAdapter",
    "adapter_for",
]


def adapter_for(
    task: AnyTask, family: str, max_length: int, model: str, prediction_order: str = "drawn", stride: int | None = None
) -> TaskAdapter:
    """Return the adapter of a task for models of one family.

    Args:
        task: the task.
        family: the models' family, such as ``masked`` or ``causal``.
        max_length: longest input in tokens.
        model: the model's name, for the error.
        prediction_order: order in which a permutation model is trained to predict tokens.
        stride: tokens from the start of a window to that of the next, if texts are scored from left to right.

    Raises:
        UsageError: the family cannot learn this task.
    """
    if isinstance(task, ClassificationTask):
        return ClassificationAdapter(task, max_length)
    task.check(family, model)
    if task.kind == "image-text":
        assert task.scored is not None, "pairs are scored by retrieval"
        return DualEncoderAdapter(task, task.scored, max_length)
    if task.scored is not None:
        return EmbeddingAdapter(task, task.scored, max_length)
    if family == "ctc":
        return CTCAdapter(replace(task, by_frames=True), max_length)
    return LanguageModelingAdapter(task, family, max_length, prediction_order, stride)
