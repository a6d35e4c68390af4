"""What a kind of task asks of a run: how text becomes tokens, which head answers, what is minimised and what scored.

``Classifying`` is for classes and scores, ``Modelling`` for tokens, ``Embedding`` for texts as vectors; the pipeline
knows none of them.
"""

from kdalign.data.tasks import AnyTask, Task
from kdalign.evaluation.adapters.base import Answers, Work
from kdalign.evaluation.adapters.classification import Classifying
from kdalign.evaluation.adapters.embedding import Embedding
from kdalign.evaluation.adapters.language_modeling import Modelling

__all__ = ["Answers", "Classifying", "Embedding", "Modelling", "Work", "work_on"]


def work_on(
    task: AnyTask, family: str, max_length: int, model: str, asked_in: str = "drawn", stride: int | None = None
) -> Work:
    """The work of a task for models of a family.

    Args:
        task: what is learnt or scored.
        family: of the models.
        max_length: longest input in tokens.
        model: its name, for the error line.
        asked_in: the order in which a permutation model is trained to predict tokens.
        stride: positions between one window and the next, where a text is scored from left to right.

    Raises:
        UsageError: the family cannot do this task.
    """
    if isinstance(task, Task):
        return Classifying(task, max_length)
    task.check(family, model)
    if task.scored is not None:
        return Embedding(task, task.scored, max_length)
    return Modelling(task, family, max_length, asked_in, stride)
