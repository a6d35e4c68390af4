"""Examples on which student and teacher disagree."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdalign.data.tasks import ClassificationTask, Examples, find_task, load_examples
from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import softmax
from kdalign.runs.finished import FinishedRun
from kdalign.runs.prediction_table import ModelColumns, read_predictions


@dataclass(frozen=True)
class SplitAnswers:
    """What a student and its teacher answered to a split's examples.

    Attributes:
        labels: names of classes; empty where answers are scores.
        references: (examples,), class numbers or scores; None for a split without labels.
        student: (examples,), class numbers or scores.
        teacher: likewise; None where there is none, or where its answers are to other tokens.
        student_logits: (examples, classes); None where answers are scores.
        teacher_logits: likewise; None where they were not kept.
    """

    name: str
    task: str
    split: str
    labels: tuple[str, ...]
    references: Array | None
    student: Array
    teacher: Array | None = None
    student_logits: Array | None = None
    teacher_logits: Array | None = None


@dataclass(frozen=True)
class Disagreement:
    """An example that student and teacher answer differently.

    Attributes:
        row: its number in the split, from 0.
        texts: one, or the two of a pair; empty where the run's data is not there any more.
        label: what is right; empty where it is not known.
        confidence: of the student in its answer, between 0 and 1; None where answers are scores.
        teacher_confidence: likewise; None where the teacher's logits were not kept.
        distance: how far the answers lie apart: half the sum of the probabilities' differences, between 0 and 1;
            of scores their difference.
    """

    row: int
    texts: tuple[str, ...]
    label: str
    student: str
    teacher: str
    distance: float
    confidence: float | None = None
    teacher_confidence: float | None = None


@dataclass(frozen=True)
class Disagreements:
    """The examples on which a student and its teacher differ most, farthest apart first.

    Attributes:
        differ: examples whose answers differ; of scores, all.
        n: examples that both answered.
    """

    name: str
    task: str
    split: str
    differ: int
    n: int
    examples: tuple[Disagreement, ...] = field(default=())


def read_answers(run: FinishedRun) -> SplitAnswers | None:
    """A run's kept answers to the split that stands for its task; None where they are to tokens, or gone."""
    file = run.folder.predictions(run.split)
    if not file.is_file():
        return None
    table = read_predictions(file, run.record.reported[run.split].n)
    if table.student.values is None:
        return None
    labels = table.student.outputs if len(table.student.outputs) > 1 else ()

    def logits(model: ModelColumns) -> Array | None:
        kept = model.logits if labels and model.outputs == labels else None
        return None if kept is None else kept.astype(np.float64)

    return SplitAnswers(
        name=run.name,
        task=run.record.task,
        split=run.split,
        labels=labels,
        references=table.labels,
        student=table.student.values,
        teacher=table.teacher.values,
        student_logits=logits(table.student),
        teacher_logits=logits(table.teacher),
    )


Read = dict[tuple[Any, ...], tuple[Examples, str] | None]
"""Splits that were read already with their fingerprints, by where they lie."""


def find_disagreements(run: FinishedRun, most: int = 5, read: Read | None = None) -> Disagreements | None:
    """The examples on which a run's student and its teacher differ most; None where the teacher's answers are not kept.

    Of classes, those with other answers, by the distance of the probabilities (the student's confidence where the
    teacher's logits were not kept); of scores, by their difference.

    Args:
        run: a finished run.
        most: examples.
        read: where splits are kept for the next run that has the same.
    """
    found = read_answers(run)
    if found is None or found.teacher is None:
        return None
    ours = None if found.student_logits is None else softmax(found.student_logits)
    theirs = None if found.teacher_logits is None else softmax(found.teacher_logits)
    differ = np.flatnonzero(found.student != found.teacher)
    if ours is None:
        distance = np.abs(found.student - found.teacher)
    elif theirs is None:
        distance = ours.max(axis=1)
    else:
        distance = np.abs(ours - theirs).sum(axis=1) / 2
    rows = differ[np.argsort(-distance[differ], kind="stable")][:most].tolist()
    examples = texts_of(run, read)

    def shown(value: Any) -> str:
        return found.labels[int(value)] if found.labels else f"{float(value):.2f}"

    return Disagreements(
        name=run.name,
        task=found.task,
        split=found.split,
        differ=len(differ),
        n=len(found.student),
        examples=tuple(
            Disagreement(
                row=row,
                texts=() if examples is None else tuple(column[row] for column in examples.texts),
                label="" if found.references is None else shown(found.references[row]),
                student=shown(found.student[row]),
                teacher=shown(found.teacher[row]),
                distance=float(distance[row]),
                confidence=None if ours is None else float(ours[row].max()),
                teacher_confidence=None if theirs is None else float(theirs[row].max()),
            )
            for row in rows
        ),
    )


def texts_of(run: FinishedRun, read: Read | None = None) -> Examples | None:
    """The examples that a run was scored on, if its data folder still holds the very same; the hub is not asked."""
    data, kept = run.recipe.data, run.record.reported.get(run.split)
    if data.folder is None or kept is None:
        return None
    read = {} if read is None else read
    place = (data.task[0], data.folder, data.dataset, data.config, data.limit, run.split)
    if place not in read:
        read[place] = _texts_at(run)
    found = read[place]
    return found[0] if found is not None and found[1] == kept.fingerprint else None


def _texts_at(run: FinishedRun) -> tuple[Examples, str] | None:
    """The examples that lie where a run read its own, and their fingerprint."""
    data = run.recipe.data
    try:
        task = find_task(data.task[0], data.folder, data.dataset, data.config)
        if not isinstance(task, ClassificationTask):
            return None
        examples = load_examples(task, run.split)
    except UsageError:  # the data has gone or changed: examples are then known by their number alone
        return None
    examples = examples.take(range(min(len(examples), data.limit or len(examples))))
    return examples, examples.fingerprint()
