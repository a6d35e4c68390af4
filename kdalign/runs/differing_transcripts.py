"""Sounds that a student and its teacher transcribe differently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.media.rows import MediaItem
from kdalign.data.tables import read_table
from kdalign.errors import UsageError
from kdalign.metrics.text import count_texts
from kdalign.runs.disagreements import Disagreement, Disagreements, Read, texts_of
from kdalign.runs.finished import FinishedRun
from kdalign.runs.prediction_table import read_predictions

Evaluation = Mapping[str, Any]
"""A model's scores on a split, as ``kdalign eval`` writes them."""


@dataclass(frozen=True)
class _Transcripts:
    """What both models wrote, row by row, and the references."""

    references: Sequence[str]
    student: Sequence[str]
    teacher: Sequence[str]


def find_differing_transcripts(
    run: FinishedRun, evaluations: Sequence[Evaluation] = (), most: int = 5, read: Read | None = None
) -> Disagreements | None:
    """Find the sounds whose transcripts by student and teacher differ most, but for white space.

    Their distance is the number of edits from one to the other over the words of the longer one. Transcripts are those
    that the run kept (CTC), or those that evaluations of both models kept for the run's own examples.

    Args:
        run: a finished run.
        evaluations: evaluations of any models.
        most: number of sounds.
        read: cache of splits, to be shared by several runs.

    Returns:
        None if the transcripts of both are not known, or the task has no sounds.

    Raises:
        UsageError: a file of texts that holds something else.
    """
    written = _kept(run) or _evaluated(run, evaluations)
    if written is None:
        return None
    examples = texts_of(run, read)
    media = None if examples is None else examples.media
    pairs = zip(written.student, written.teacher, strict=True)
    differ = [row for row, (ours, theirs) in enumerate(pairs) if ours.split() != theirs.split()]
    distances = _distances([written.student[row] for row in differ], [written.teacher[row] for row in differ])
    order = np.argsort(-distances, kind="stable")[:most].tolist()
    return Disagreements(
        name=run.name,
        task=run.record.task,
        split=run.split,
        differ=len(differ),
        n=len(written.student),
        examples=tuple(
            Disagreement(
                row=differ[place],
                texts=() if media is None else (media.name(differ[place]),),
                label=written.references[differ[place]],
                student=written.student[differ[place]],
                teacher=written.teacher[differ[place]],
                distance=float(distances[place]),
                media=None if media is None else MediaItem(media, differ[place]),
            )
            for place in order
        ),
        headings=("sound", "transcript"),
    )


def _distances(one: Sequence[str], other: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return the edits of words between texts over the words of the longer, between 0 and 1, (texts,)."""
    if not one:
        return np.zeros(0)
    edits = count_texts("wer", one, [(text,) for text in other]).rows[:, 0]
    longer = [max(len(text.split()), len(with_.split())) for text, with_ in zip(one, other, strict=True)]
    distances: np.ndarray[Any, Any] = edits / np.array(longer)
    return distances


def _kept(run: FinishedRun) -> _Transcripts | None:
    """Return the transcripts that a run kept; None if it kept others or none."""
    file = run.folder.predictions(run.split)
    if not file.is_file():
        return None
    table = read_predictions(file, run.record.reported[run.split].n)
    ours, theirs = table.student.written, table.teacher.written
    if ours is None or theirs is None:
        return None
    return _Transcripts([known[0] for known in table.references], ours, theirs)


def _evaluated(run: FinishedRun, evaluations: Sequence[Evaluation]) -> _Transcripts | None:
    """Return the transcripts of a student and its teacher from evaluations in which both wrote in one way."""
    teacher, reported = run.record.teacher, run.record.reported[run.split]
    if teacher is None or teacher.modality != "audio":
        return None
    here = [
        each
        for each in evaluations
        if each.get("texts")
        and (each["task"], each["split"], each.get("examples")) == (run.record.task, run.split, reported.fingerprint)
    ]
    students = [each for each in here if each.get("run") == run.record.identity]
    teachers = [each for each in here if _is_same_model(each["model"], teacher.source)]
    for ours, theirs in product(students, teachers):
        if all(ours.get(name) == theirs.get(name) for name in ("writing", "language")):
            student, taught = (_read(Path(each["texts"]), reported.n) for each in (ours, theirs))
            if student is not None and taught is not None:
                return _Transcripts(student[0], student[1], taught[1])
    return None


def _is_same_model(one: str, other: str) -> bool:
    """Return whether two names are of one model: equal, or paths of one folder."""
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _read(file: Path, n: int) -> tuple[list[str], list[str]] | None:
    """Read the references and texts that an evaluation kept; None if its file has gone.

    Raises:
        UsageError: it holds something else.
    """
    if not file.is_file():
        return None
    table = read_table(file)
    if not {"references", "prediction"} <= set(table.columns) or len(table) != n:
        raise UsageError(f"{str(file)!r} does not hold the texts of {n:,} examples with their references")
    references, texts = [list(known) for known in table["references"]], list(table["prediction"])
    if not all(references) or not all(isinstance(text, str) for text in (*texts, *chain.from_iterable(references))):
        raise UsageError(f"{str(file)!r} does not hold texts with their references")
    return [known[0] for known in references], texts
