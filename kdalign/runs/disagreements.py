"""Examples on which student and teacher disagree."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdalign.data.media.rows import MediaItem, MediaRows
from kdalign.data.tasks import ClassificationTask, Examples, load_examples, load_texts, task_of
from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import softmax
from kdalign.metrics.retrieval import are_ranks
from kdalign.runs.finished import FinishedRun
from kdalign.runs.prediction_table import ModelColumns, read_predictions


@dataclass(frozen=True)
class SplitAnswers:
    """Predictions of a student and its teacher on a split.

    Attributes:
        labels: names of classes; empty for scores.
        references: (examples,) class numbers or scores; None for a split without labels.
        student: (examples,) class numbers or scores.
        teacher: (examples,) likewise; None if there are none to compare.
        student_logits: (examples, classes); None for scores.
        teacher_logits: (examples, classes); None if they were not kept.
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
        row: number in the split, from 0.
        texts: one, or the two of a pair, or the name of an image or a sound; empty if the run's data has gone.
        media: the image or sound; None for texts, or if the run's data has gone.
        label: the right answer; empty if unknown.
        confidence: the student's probability of its answer, between 0 and 1; None for scores.
        teacher_confidence: the teacher's likewise; None if its logits were not kept.
        distance: half the sum of the probabilities' differences, between 0 and 1; for scores their difference.
    """

    row: int
    texts: tuple[str, ...]
    label: str
    student: str
    teacher: str
    distance: float
    confidence: float | None = None
    teacher_confidence: float | None = None
    media: MediaItem | None = None


@dataclass(frozen=True)
class Disagreements:
    """The examples on which a student and its teacher differ most, farthest apart first.

    Attributes:
        differ: number of examples with different answers; for scores, all.
        n: number of examples that both answered.
        headings: what ``texts`` and ``label`` of examples are.
    """

    name: str
    task: str
    split: str
    differ: int
    n: int
    examples: tuple[Disagreement, ...] = field(default=())
    headings: tuple[str, str] = ("text", "label")


def read_answers(run: FinishedRun) -> SplitAnswers | None:
    """Read a run's kept classes or scores on its task's first split.

    None for tokens, for ranks, which are no answers, or if the file has gone.
    """
    file = run.folder.predictions(run.split)
    if not file.is_file():
        return None
    table = read_predictions(file, run.record.reported[run.split].n)
    ranked = any(are_ranks(score.signature) for score in run.record.first_scores.student)
    if table.student.values is None or ranked:
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
"""Cache of splits with their fingerprints, by the settings of their data."""


def find_disagreements(run: FinishedRun, most: int = 5, read: Read | None = None) -> Disagreements | None:
    """Find the examples on which student and teacher differ most; None if the teacher's answers were not kept.

    Different classes are ordered by the distance of the probabilities (by the student's confidence if the teacher's
    logits were not kept), scores by their difference.

    Args:
        run: a finished run.
        most: number of examples.
        read: cache of splits, to be shared by several runs.
    """
    answers = read_answers(run)
    if answers is None or answers.teacher is None:
        return None
    ours = None if answers.student_logits is None else softmax(answers.student_logits)
    theirs = None if answers.teacher_logits is None else softmax(answers.teacher_logits)
    differ = np.flatnonzero(answers.student != answers.teacher)
    if ours is None:
        distance = np.abs(answers.student - answers.teacher)
    elif theirs is None:
        distance = ours.max(axis=1)
    else:
        distance = np.abs(ours - theirs).sum(axis=1) / 2
    rows = differ[np.argsort(-distance[differ], kind="stable")][:most].tolist()
    examples = texts_of(run, read)

    def shown(value: Any) -> str:
        return answers.labels[int(value)] if answers.labels else f"{float(value):.2f}"

    return Disagreements(
        name=run.name,
        task=answers.task,
        split=answers.split,
        differ=len(differ),
        n=len(answers.student),
        examples=tuple(
            Disagreement(
                row=row,
                texts=() if examples is None else _shown_texts(examples, row),
                label="" if answers.references is None else shown(answers.references[row]),
                student=shown(answers.student[row]),
                teacher=shown(answers.teacher[row]),
                distance=float(distance[row]),
                confidence=None if ours is None else float(ours[row].max()),
                teacher_confidence=None if theirs is None else float(theirs[row].max()),
                media=None if examples is None or examples.media is None else MediaItem(examples.media, row),
            )
            for row in rows
        ),
    )


def _shown_texts(examples: Examples, row: int) -> tuple[str, ...]:
    return tuple(column.name(row) if isinstance(column, MediaRows) else column[row] for column in examples.texts)


def texts_of(run: FinishedRun, read: Read | None = None) -> Examples | None:
    """Load the examples that a run was scored on, if its data folder still holds them; never from the hub."""
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
    """Examples now in a run's data folder, with their fingerprint."""
    data = run.recipe.data
    try:
        task = task_of(data)
        if isinstance(task, ClassificationTask):
            examples = load_examples(task, run.split)
        elif task.modality == "audio":
            examples = load_texts(task, run.split)
        else:
            return None
    except UsageError:  # the data has gone or changed: examples then have numbers alone
        return None
    examples = examples.take(range(min(len(examples), data.limit or len(examples))))
    return examples, examples.fingerprint()
