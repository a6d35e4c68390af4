"""What a kind of task asks of a run: how text becomes tokens, which head answers, what is minimised and what scored.

``Classifying`` is for classes and scores, ``Modelling`` for tokens, ``Embedding`` for texts as vectors; the pipeline
knows none of them.
"""

from kdalign.data.tasks import AnyTask, ClassificationTask
from kdalign.evaluation.adapters.base import Answers, TaskAdapter
from kdalign.evaluation.adapters.classification import ClassificationAdapter
from kdalign.evaluation.adapters.embedding import EmbeddingAdapter
from kdalign.evaluation.adapters.language_modeling import LanguageModelingAdapter

__all__ = [
    "Answers",
    "ClassificationAdapter",
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
        task: what is learnt or scored.
        family: of the models.
        max_length: longest input in tokens.
        model: its name, for the error line.
        prediction_order: the order in which a permutation model is trained to predict tokens.
        stride: positions between one window and the next, where a text is scored from left to right.

    Raises:
        UsageError: the family cannot do this task.
    """
    if isinstance(task, ClassificationTask):
        return ClassificationAdapter(task, max_length)
    task.check(family, model)
    if task.scored is not None:
        return EmbeddingAdapter(task, task.scored, max_length)
    return LanguageModelingAdapter(task, family, max_length, prediction_order, stride)
