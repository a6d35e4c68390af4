"""The rows of a run: to train on, to monitor during training, and to report."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdalign.data.epoch_order import sample_numbers
from kdalign.data.tasks import ClassificationTask, Examples, UnlabelledSource, hold_out, unlabelled_texts
from kdalign.data.tasks.loading import split_exists
from kdalign.data.tasks.unlabelled import REST
from kdalign.distillation.row_shifts import neighbouring_rows
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.recipe import DataSettings, Recipe, TrainSettings

MONITORED = (100, 500)
"""Fewest and most examples of train that are monitored if none are held out, a twentieth of train in between: some ten
evaluations then cost little compared to the training."""
MONITORED_CHARACTERS = 50_000
"""Most characters of them, for the same reason: documents can be long."""


@dataclass(frozen=True)
class RunSplits:
    """The rows of a run.

    Attributes:
        train: rows to train on.
        watched: monitored slice of train: held out, or a part of ``train``.
        reported: splits that the run is scored on once, at its end.
        unlabelled: text without labels to train on as well; None without any.
        neighbours: blocks of rows of train that follow one another in its file, some of which may not be trained on.
    """

    train: Examples
    watched: Examples
    reported: Mapping[str, Examples]
    unlabelled: UnlabelledSource | None
    neighbours: tuple[Examples, ...]


def load_splits(adapter: TaskAdapter, recipe: Recipe) -> RunSplits:
    """Read the rows of a run.

    Raises:
        UsageError: no such data, or none with labels for a task that needs them.
    """
    examples = _load_train(adapter)
    train, watched = _split_train(examples, recipe)
    reported = _splits_to_report(adapter, recipe.data)
    unlabelled = _load_unlabelled(adapter, recipe, train, watched, reported)
    return RunSplits(train, watched, reported, unlabelled, neighbouring_rows(examples))


def training_examples(adapter: TaskAdapter, recipe: Recipe) -> tuple[Examples, Examples]:
    """Read all rows to train on, and the monitored slice of train.

    Raises:
        UsageError: no such data, none with labels for a task that needs them, or a stream.
    """
    if recipe.data.streaming:
        raise UsageError("it needs all rows of train, which the run reads as a stream (data.streaming=true)")
    return _split_train(_load_train(adapter), recipe)


def _load_train(adapter: TaskAdapter) -> Examples:
    task = adapter.task
    examples = adapter.load_examples(task.train)
    if isinstance(task, ClassificationTask) and examples.labels is None:
        raise UsageError(f"{task.source}, split {task.train!r} has no labels in column {task.label!r}")
    return examples


def _split_train(examples: Examples, recipe: Recipe) -> tuple[Examples, Examples]:
    return _split_watched(_limited(examples, recipe.data, recipe.train.seed), recipe.train)


def _limited(examples: Examples, data: DataSettings, seed: int, left_out: bool = False) -> Examples:
    """Return the rows that a limit keeps, or those that it leaves out."""
    if data.limit is None or data.limit >= len(examples):
        return examples.take([]) if left_out else examples
    rows = np.random.default_rng([_drawn_by(data, seed), len(examples)]).permutation(len(examples))
    taken = rows[data.limit :] if left_out else rows[: data.limit]
    return examples.take(sorted(taken.tolist()))


def _drawn_by(data: DataSettings, seed: int) -> int:
    """Return the seed by which a limit draws rows."""
    return seed if data.limit_seed is None else data.limit_seed


def _load_unlabelled(
    adapter: TaskAdapter, recipe: Recipe, train: Examples, watched: Examples, reported: Mapping[str, Examples]
) -> UnlabelledSource | None:
    """Read the text without labels that the recipe names."""
    data, seed = recipe.data, recipe.train.seed
    if data.unlabelled is None:
        return None
    assert isinstance(adapter.task, ClassificationTask), "other tasks were refused"
    wants_rest = data.unlabelled == REST and data.limit is not None
    return unlabelled_texts(
        adapter.task,
        data,
        _limited(adapter.load_examples(adapter.task.train), data, seed, left_out=True) if wants_rest else None,
        {"labelled rows": train, **reported},
        watched if recipe.train.holds_out else None,
        _drawn_by(data, seed),
    )


def _split_watched(examples: Examples, settings: TrainSettings) -> tuple[Examples, Examples]:
    """Split rows into those to train on and the monitored slice of train."""
    if settings.holds_out:
        kept, held = hold_out(examples, settings.holdout, settings.seed)
        return examples.take(kept), examples.take(held)
    size = int(np.clip(len(examples) // 20, *MONITORED))
    rows = sample_numbers([settings.seed, 1], len(examples), size)
    texts = zip(*examples.take(rows.tolist()).texts, strict=True)
    characters = np.cumsum([sum(map(len, row)) for row in texts])
    rows = rows[: max(1, int(np.searchsorted(characters, MONITORED_CHARACTERS, side="right")))]
    return examples, examples.take(sorted(rows.tolist()))


def _splits_to_report(adapter: TaskAdapter, data: DataSettings) -> dict[str, Examples]:
    """Read the splits that the run is scored on."""
    first, *others = adapter.task.evaluation
    names = [first, *(split for split in others if split_exists(adapter.task.source, split))]
    return {name: examples_to_report(adapter, data, name) for name in names}


def examples_to_report(adapter: TaskAdapter, data: DataSettings, split: str) -> Examples:
    """Read one of the splits that a run is scored on.

    Raises:
        UsageError: no such data, or none with labels for a task that needs them.
    """
    examples = adapter.load_examples(split)
    if isinstance(adapter.task, ClassificationTask) and examples.labels is None:
        raise UsageError(f"{adapter.task.source}, split {split!r} has no labels to score against")
    return examples.take(range(min(len(examples), data.limit or len(examples))))
