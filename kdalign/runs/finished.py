"""What finished runs left behind beside their scores: histories, answers to single examples, how to make them again.

Reads run folders and, for the texts of examples, the data that a run was scored on; no model, no torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.tasks import Examples, Task, find_task, load_examples
from kdalign.errors import UsageError
from kdalign.metrics.classification import METRICS
from kdalign.recipe import KEYS_OF_TERMS, Recipe
from kdalign.runs.discovery import key_of
from kdalign.runs.integrity import read_checked
from kdalign.runs.prediction_table import read_predictions
from kdalign.runs.record import RECORD, RunFolder, RunRecord, find_runs

Array = np.ndarray[Any, Any]

_UNITS = {
    "hard": "nats",
    "soft": "nats",
    "embedding": "1 − cosine",
    "similarity": "teacher's spreads",
    "cosine": "1 − cosine",
    "euclid": "teacher's variances",
    "attention": "squared distance",
    "embeddings": "1 − cosine",
    "relations": "nats",
    "masked-lm": "nats",
    "dkd": "nats",
    "attention-kl": "nats",
    "info-nce": "nats",
    "crd": "nats",
    "attended-euclid": "teacher's variances",
    "nmse": "teacher's squared lengths",
    "pkd": "squared distance",
    "rkd-distance": "Huber distance",
    "rkd-angle": "Huber distance",
    "similarity-preserving": "squared distance",
    "cka": "1 − CKA",
    "dist": "1 − correlation",
    "logit-mse": "squared distance",
}
_SQUARED = {"hard": "squared error", "soft": "squared error"}
"""Where answers are scores."""


@dataclass(frozen=True)
class FinishedRun:
    """A run folder with its record, and what a table or picture calls it.

    Attributes:
        group: equal for runs of one recipe that differ by seed alone.
    """

    name: str
    folder: RunFolder
    record: RunRecord
    group: str

    @cached_property
    def recipe(self) -> Recipe:
        """As it was resolved."""
        return self.record.parsed_recipe()

    @property
    def split(self) -> str:
        """The split that stands for the task."""
        return next(iter(self.record.scores))


@dataclass(frozen=True)
class Curves:
    """The steps of one training.

    Attributes:
        name: of the run.
        group: as in ``FinishedRun``.
        steps: (steps,), counted from 1.
        terms: each term before its weight, (steps,), in the order of the objective.
        weights: of the terms; (steps,) each, where they change on the way.
        units: of the terms, before their weights.
        loss: (steps,), the weighted sum.
        gradient_norm: (steps,), before clipping.
        clip: the largest norm that the optimizer saw.
        looks: (looks,), the steps before which each term's own gradient was looked at.
        pulls: (looks,) each, the norm of a weighted term's gradient there; nan in a stage without it.
        every: 1, or n where only every n-th step of a long training is here.
    """

    name: str
    task: str
    group: str
    steps: Array
    terms: Mapping[str, Array]
    weights: Mapping[str, float | Array]
    units: Mapping[str, str]
    loss: Array
    gradient_norm: Array
    clip: float
    looks: Array = field(default_factory=lambda: np.zeros(0))
    pulls: Mapping[str, Array] = field(default_factory=dict)
    every: int = 1

    @property
    def shares(self) -> dict[str, Array]:
        """Each term's part of the loss in per cent, (steps,); 0 in a stage without it."""
        parts = {name: self.weights[name] * np.nan_to_num(values) for name, values in self.terms.items()}
        whole = np.sum(list(parts.values()), axis=0)
        return {
            name: 100 * np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0) for name, part in parts.items()
        }


@dataclass(frozen=True)
class Answers:
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


def finished_runs(paths: Sequence[str | Path]) -> list[FinishedRun]:
    """All finished runs at or below these paths, each once; files that are no records are passed over."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        folder = path.parent if path.name == RECORD else path
        folders |= dict.fromkeys(found.resolve() for found in find_runs(folder))
    names = _names(list(folders))
    runs = []
    for folder, name in names.items():
        record = read_checked(folder)
        runs.append(FinishedRun(name, RunFolder(folder), record, key_of({record.task: record})))
    return runs


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Folders' own names; with their parent's where it is one recipe's over several tasks, or a name is there twice."""
    names = {}
    for folder in folders:
        twice = sum(other.name == folder.name for other in folders) > 1
        several = (folder.parent / "recipe.yaml").is_file()
        names[folder] = f"{folder.parent.name}/{folder.name}" if twice or several else folder.name
    return names


def curves(run: FinishedRun) -> Curves | None:
    """A run's training by its history; None where that is empty or gone."""
    events, every = _events(run.folder.history, "step", ("parts", "weights"), ("loss", "gradient_norm"))
    looks, _ = _events(run.folder.history, "gradients", ("norms",), ())
    if not events:
        return None
    names = dict.fromkeys(name for event in events for name in event["parts"])
    kinds = {name: name.partition(" ")[0] for name in names}  # what follows is a stack
    objective = run.recipe.objective.built.weights
    unknown = [name for name, kind in kinds.items() if KEYS_OF_TERMS.get(kind, kind) not in objective]
    if unknown:
        raise UsageError(f"{str(run.folder.history)!r} has a term {unknown[0]!r}, and the run's recipe has none such")
    scores = run.record.metrics[0] in METRICS and METRICS[run.record.metrics[0]].regression
    return Curves(
        name=run.name,
        task=run.record.task,
        group=run.group,
        steps=np.array([event["step"] for event in events]),
        terms={name: np.array([event["parts"].get(name, np.nan) for event in events]) for name in names},
        weights={
            name: _weights(events, name, objective[KEYS_OF_TERMS.get(kind, kind)]) for name, kind in kinds.items()
        },
        units={
            name: (_SQUARED if scores else {}).get(kind, _UNITS.get(kind, "own unit")) for name, kind in kinds.items()
        },
        loss=np.array([event["loss"] for event in events]),
        gradient_norm=np.array([event["gradient_norm"] for event in events]),
        clip=run.recipe.train.clip,
        looks=np.array([event["step"] for event in looks]),
        pulls={name: np.array([_number(event["norms"].get(name)) for event in looks]) for name in names if looks},
        every=every,
    )


MOST_EVENTS = 20_000
"""Events of a kind that pictures take of a history; of a longer one every second, fourth, ... and the last."""


def _events(file: Path, kind: str, named: Sequence[str], numbers: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The events of one kind in a history, line by line: one of a million steps is not held at once.

    Args:
        file: a history.
        kind: of the events.
        named: their keys with numbers by name; the first must be there.
        numbers: their keys with a number.

    Returns:
        The events, and n where only every n-th is among them.

    Raises:
        UsageError: an event of another shape.
    """
    found: list[dict[str, Any]] = []
    every, count, last = 1, 0, None
    for number, line in enumerate(_lines(file), 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # a killed run left it half written
            continue
        if not isinstance(event, dict) or event.get("kind") != kind:
            continue
        if not _is_event(event, kind, named, numbers):
            raise UsageError(f"{str(file)!r}, line {number}: not an event of a training")
        last = event
        if count % every == 0:
            found.append(event)
        count += 1
        if len(found) > MOST_EVENTS:
            found, every = found[::2], 2 * every
    if last is not None and found[-1] is not last:
        found.append(last)
    return found, every


def _lines(file: Path) -> Iterator[bytes]:
    if not file.is_file():
        return
    with file.open("rb") as lines:
        while line := lines.readline(_LONGEST_EVENT):
            if len(line) == _LONGEST_EVENT:
                raise UsageError(f"{str(file)!r} has a line of more than {_LONGEST_EVENT:,} bytes")
            yield line


_LONGEST_EVENT = 2**20


def _is_event(event: Mapping[str, Any], kind: str, named: Sequence[str], numbers: Sequence[str]) -> bool:
    def number(value: object) -> bool:
        if value is None:
            return kind == "gradients"  # a norm that is beyond floats
        return isinstance(value, int | float) and not isinstance(value, bool)

    return (
        isinstance(event.get("step"), int)
        and 0 <= event["step"] <= _MOST_STEPS
        and named[0] in event
        and all(isinstance(event.get(key, {}), dict) and all(map(number, event.get(key, {}).values())) for key in named)
        and all(number(event.get(key)) for key in numbers)
    )


_MOST_STEPS = 2**53
"""Whole numbers up to here are floats, too, of which pictures are made."""


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _weights(events: Sequence[Mapping[str, Any]], name: str, fixed: float) -> float | Array:
    """A term's weight, or those of all steps where they changed on the way."""
    if not any("weights" in event for event in events):
        return fixed
    return np.array([event.get("weights", {}).get(name, 0.0) for event in events])


def answers(run: FinishedRun) -> Answers | None:
    """A run's kept answers to the split that stands for its task; None where they are to tokens, or gone."""
    file = run.folder.predictions(run.split)
    if not file.is_file():
        return None
    table = read_predictions(file, run.record.data["reported"][run.split]["n"])
    if "prediction" not in table.columns:
        return None
    labels = tuple(name.removeprefix("logit/") for name in table.columns if name.startswith("logit/"))
    scores = len(labels) < 2

    def logits(prefix: str) -> Array | None:
        columns = [f"{prefix}/{label}" for label in labels]
        return table[columns].to_numpy(np.float64) if not scores and set(columns) <= set(table.columns) else None

    return Answers(
        name=run.name,
        task=run.record.task,
        split=run.split,
        labels=() if scores else labels,
        references=table["label"].to_numpy() if "label" in table.columns else None,
        student=table["prediction"].to_numpy(),
        teacher=table["teacher"].to_numpy() if "teacher" in table.columns else None,
        student_logits=logits("logit"),
        teacher_logits=logits("teacher_logit"),
    )


Read = dict[tuple[Any, ...], tuple[Examples, str] | None]
"""Splits that were read already with their fingerprints, by where they lie."""


def disagreements(run: FinishedRun, most: int = 5, read: Read | None = None) -> Disagreements | None:
    """The examples on which a run's student and its teacher differ most; None where the teacher's answers are not kept.

    Of classes, those with other answers, by the distance of the probabilities (the student's confidence where the
    teacher's logits were not kept); of scores, by their difference.

    Args:
        run: a finished run.
        most: examples.
        read: where splits are kept for the next run that has the same.
    """
    found = answers(run)
    if found is None or found.teacher is None:
        return None
    ours = None if found.student_logits is None else _softmax(found.student_logits)
    theirs = None if found.teacher_logits is None else _softmax(found.teacher_logits)
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
    data, kept = run.recipe.data, run.record.data["reported"].get(run.split)
    if data.folder is None or kept is None:
        return None
    read = {} if read is None else read
    place = (data.task[0], data.folder, data.dataset, data.config, data.limit, run.split)
    if place not in read:
        read[place] = _texts_at(run)
    found = read[place]
    return found[0] if found is not None and found[1] == kept["fingerprint"] else None


def _texts_at(run: FinishedRun) -> tuple[Examples, str] | None:
    """The examples that lie where a run read its own, and their fingerprint."""
    data = run.recipe.data
    try:
        task = find_task(data.task[0], data.folder, data.dataset, data.config)
        if not isinstance(task, Task):
            return None
        examples = load_examples(task, run.split)
    except UsageError:  # the data has gone or changed: examples are then known by their number alone
        return None
    examples = examples.take(range(min(len(examples), data.limit or len(examples))))
    return examples, examples.fingerprint()


def front(cost: Array, quality: Array) -> list[int]:
    """The rows that no other row beats: no cheaper one is as good. From the cheapest to the best.

    Args:
        cost: (rows,), lower is better.
        quality: (rows,), higher is better.
    """
    best, found = -np.inf, []
    for row in np.lexsort((-quality, cost)).tolist():
        if quality[row] > best:
            best = quality[row]
            found.append(row)
    return found


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = raised / raised.sum(axis=1, keepdims=True)
    return probabilities
