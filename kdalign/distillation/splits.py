"""Which rows a run learns from, which it looks at on the way, and which it is scored on."""

from collections.abc import Mapping

import numpy as np

from kdalign.data.tasks import ClassificationTask, Examples, UnlabelledSource, hold_out, unlabelled_texts
from kdalign.data.tasks.loading import split_exists
from kdalign.data.tasks.unlabelled import REST
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.recipe import DataSettings, Recipe, TrainSettings

MONITORED = (100, 500)
"""At least and at most so many examples of train, a twentieth of them between, are evaluated on the way where none
are held out: some ten evaluations then cost little beside the training."""
MONITORED_CHARACTERS = 50_000
"""At most so much text of them, for the same reason: documents can be long."""


def training_examples(adapter: TaskAdapter, recipe: Recipe) -> tuple[Examples, Examples]:
    """The rows to train on, and the slice of train that is evaluated on the way.

    Raises:
        UsageError: no such data, or none with labels where the task needs them.
    """
    task = adapter.task
    examples, _ = _limited(adapter.load_examples(task.train), recipe.data, recipe.train.seed)
    if isinstance(task, ClassificationTask) and examples.labels is None:
        raise UsageError(f"{task.source}, split {task.train!r} has no labels in column {task.label!r}")
    return _watched(examples, recipe.train)


def _limited(examples: Examples, data: DataSettings, seed: int) -> tuple[Examples, Examples]:
    """The rows that a limit keeps, and those that it leaves out."""
    if data.limit is None or data.limit >= len(examples):
        return examples, examples.take([])
    rows = np.random.default_rng([_drawn_by(data, seed), len(examples)]).permutation(len(examples))
    return examples.take(sorted(rows[: data.limit].tolist())), examples.take(sorted(rows[data.limit :].tolist()))


def _drawn_by(data: DataSettings, seed: int) -> int:
    """The seed of what a limit keeps."""
    return seed if data.limit_seed is None else data.limit_seed


def load_unlabelled_texts(
    adapter: TaskAdapter, recipe: Recipe, train: Examples, watched: Examples, reported: Mapping[str, Examples]
) -> UnlabelledSource | None:
    """The text without labels that the recipe names."""
    data, seed = recipe.data, recipe.train.seed
    if data.unlabelled is None:
        return None
    assert isinstance(adapter.task, ClassificationTask), "other tasks were refused"
    wants_rest = data.unlabelled == REST and data.limit is not None
    return unlabelled_texts(
        adapter.task,
        data,
        _limited(adapter.load_examples(adapter.task.train), data, seed)[1] if wants_rest else None,
        {"labelled rows": train, **reported},
        watched if recipe.train.holds_out else None,
        _drawn_by(data, seed),
    )


def _watched(examples: Examples, settings: TrainSettings) -> tuple[Examples, Examples]:
    """The rows to train on, and the slice of train that is evaluated on the way."""
    if settings.holds_out:
        kept, held = hold_out(examples, settings.holdout, settings.seed)
        return examples.take(kept), examples.take(held)
    size = int(np.clip(len(examples) // 20, *MONITORED))
    rows = np.random.default_rng([settings.seed, 1]).permutation(len(examples))[:size]
    characters = np.cumsum([sum(len(column[row]) for column in examples.texts) for row in rows])
    rows = rows[: max(1, int(np.searchsorted(characters, MONITORED_CHARACTERS, side="right")))]
    return examples, examples.take(sorted(rows.tolist()))


def splits_to_report(adapter: TaskAdapter, data: DataSettings) -> dict[str, Examples]:
    """The splits that the run is scored on, once, at its end."""
    found = {}
    for number, split in enumerate(adapter.task.evaluation):
        if number and not split_exists(adapter.task.source, split):
            continue
        found[split] = examples_to_report(adapter, data, split)
    return found


def examples_to_report(adapter: TaskAdapter, data: DataSettings, split: str) -> Examples:
    """One of the splits that a run is scored on.

    Raises:
        UsageError: no such data, or none with labels where the task needs them.
    """
    examples = adapter.load_examples(split)
    if isinstance(adapter.task, ClassificationTask) and examples.labels is None:
        raise UsageError(f"{adapter.task.source}, split {split!r} has no labels to score against")
    return examples.take(range(min(len(examples), data.limit or len(examples))))
