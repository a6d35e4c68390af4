"""Texts without labels to train on with a task's labelled rows, without those that are trained on or scored already."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.holdout import normalise_rows, rows_around, rows_inside
from kdalign.data.tasks.loading import load_unlabelled
from kdalign.data.tasks.task import ClassificationTask
from kdalign.errors import UsageError
from kdalign.recipe import DataSettings

REST = "rest"
"""Word for the task's own training rows that ``--limit`` leaves out."""
HELD = "held-out rows"


@dataclass(frozen=True)
class UnlabelledSource:
    """Texts without labels to train on.

    Attributes:
        examples: texts that are kept.
        source: origin of the texts, for the reader.
        dropped: number of texts left out, by the rows that they equal: labelled rows, rows held out, or a split.
        an_epoch: number of texts in each epoch.
    """

    examples: Examples
    source: str
    dropped: Mapping[str, int]
    an_epoch: int

    def __str__(self) -> str:
        how = {HELD: "in or around"}
        left_out = ", ".join(f"{n:,} {how.get(what, 'equal to')} {what}" for what, n in self.dropped.items() if n)
        each = f", {self.an_epoch:,} of them an epoch" if self.an_epoch < len(self.examples) else ""
        return f"{len(self.examples):,} from {self.source}{each}{f' (left out: {left_out})' if left_out else ''}"


def unlabelled_texts(
    task: ClassificationTask,
    data: DataSettings,
    rest: Examples | None,
    known: Mapping[str, Examples],
    held: Examples | None,
    seed: int,
) -> UnlabelledSource:
    """Read the recipe's texts without labels, and leave out those that are trained on or scored already.

    Texts are compared word for word, in lower case; those of pairs as pairs.

    Args:
        task: a task of classes or scores.
        data: ``unlabelled`` is a folder, a file, or ``rest``; ``unlabelled_limit`` the largest number, drawn by the
            seed; ``unlabelled_share`` their share of an epoch's rows, all of them if None.
        rest: training rows that a limit leaves out; None without a limit.
        known: texts to leave out: the labelled rows (the first), and the splits that are scored.
        held: rows held out of train; a text that is part of one, or holds one of some words, is left out.
        seed: seed of the draw.

    Raises:
        UsageError: nothing is there or left, or a column is missing.
    """
    texts, source = _read(task, str(data.unlabelled), rest)
    dropped = dict.fromkeys(known, 0)
    if held is not None:
        inside = {*rows_inside(texts, held), *rows_around(texts, held)}
        dropped[HELD] = len(inside)
        texts = texts.take([row for row in range(len(texts)) if row not in inside])
    split_of = {row: name for name, examples in reversed(list(known.items())) for row in normalise_rows(examples)}
    equal = [split_of.get(row) for row in normalise_rows(texts)]
    for name in known:
        dropped[name] = equal.count(name)
    kept = np.flatnonzero([name is None for name in equal])
    limit = data.unlabelled_limit
    if limit is not None and limit < len(kept):
        kept = np.sort(np.random.default_rng([seed, len(kept)]).permutation(kept)[:limit])
    if not len(kept):
        raise UsageError(f"--unlabelled {data.unlabelled}: every text equals one that is trained on or scored already")
    labelled = next(iter(known.values()))
    per_epoch = _rows_per_epoch(len(labelled), len(kept), data.unlabelled_share)
    return UnlabelledSource(texts.take(kept.tolist()), source, dropped, per_epoch)


def _read(task: ClassificationTask, place: str, rest: Examples | None) -> tuple[Examples, str]:
    """Read all texts, and say where they come from."""
    if place != REST:
        return load_unlabelled(task, Path(place)), place
    if rest is None or not len(rest):
        raise UsageError(
            "--unlabelled rest is the training rows that --limit leaves out, and "
            + ("there is no --limit" if rest is None else "it leaves out none")
        )
    return Examples("unlabelled", rest.texts, None, origins=rest.origins), f"the rest of {task.train}"


def _rows_per_epoch(labelled: int, unlabelled: int, share: float | None) -> int:
    """Number of rows without labels that are this share of an epoch with all labelled rows."""
    if share is None:
        return unlabelled
    wanted = max(1, round(labelled * share / (1 - share)))
    if wanted > unlabelled:
        raise UsageError(
            f"data.unlabelled_share={share:g} takes {wanted:,} texts without labels next to {labelled:,} labelled "
            f"rows, and there are {unlabelled:,} (accepted: up to {unlabelled / (labelled + unlabelled):.3g})"
        )
    return wanted
