"""Text without labels to learn from beside a task's rows, cleared of what is learnt or scored already."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdalign.data.tasks.holdout import normalise_rows, rows_around, rows_inside
from kdalign.data.tasks.loading import Examples, load_unlabelled
from kdalign.data.tasks.task import ClassificationTask
from kdalign.errors import UsageError

REST = "rest"
"""The word for the task's own training rows that ``--limit`` leaves out."""


HELD = "held-out rows"


@dataclass(frozen=True)
class UnlabelledSource:
    """Texts without labels.

    Attributes:
        examples: that are learnt from.
        source: where they come from, for people.
        dropped: how many were left out, by what they equal: the labelled rows, those held out, or a split.
        an_epoch: how many of them an epoch has.
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
    place: str,
    rest: Examples | None,
    known: Mapping[str, Examples],
    held: Examples | None,
    limit: int | None,
    share: float | None,
    seed: int,
) -> UnlabelledSource:
    """Read texts without labels and leave out those that are known.

    Texts are compared word for word, in lower case; those of pairs as pairs.

    Args:
        task: of classes or scores.
        place: a folder, a file, or ``rest``.
        rest: the training rows that a limit leaves out; None without a limit.
        known: what they must not equal: the labelled rows (the first), and the splits that are scored.
        held: rows held out of train, inside which no text may lie, nor around one of some words; None where none are.
        limit: at most so many, drawn by the seed.
        share: of an epoch's rows, those without labels; None for all of them.
        seed: of the draw.

    Raises:
        UsageError: nothing is there or left, or columns lack.
    """
    if place != REST:
        texts, source = load_unlabelled(task, Path(place)), place
    elif rest is None or not len(rest):
        raise UsageError(
            "--unlabelled rest is the training rows that --limit leaves out, and "
            + ("there is no --limit" if rest is None else "it leaves out none")
        )
    else:
        texts, source = Examples("unlabelled", rest.texts, None), f"the rest of {task.train}"
    dropped = dict.fromkeys(known, 0)
    if held is not None:
        inside = {*rows_inside(texts, held), *rows_around(texts, held)}
        dropped[HELD] = len(inside)
        texts = texts.take([row for row in range(len(texts)) if row not in inside])
    where = {row: what for what, examples in reversed(list(known.items())) for row in normalise_rows(examples)}
    equal = [where.get(row) for row in normalise_rows(texts)]
    for what in known:
        dropped[what] = equal.count(what)
    kept = np.flatnonzero([what is None for what in equal])
    if limit is not None and limit < len(kept):
        kept = np.sort(np.random.default_rng([seed, len(kept)]).permutation(kept)[:limit])
    if not len(kept):
        raise UsageError(f"--unlabelled {place}: every text equals one that is learnt or scored already")
    an_epoch = _in_an_epoch(len(next(iter(known.values()))), len(kept), share)
    return UnlabelledSource(texts.take(kept.tolist()), source, dropped, an_epoch)


def _in_an_epoch(labelled: int, unlabelled: int, share: float | None) -> int:
    """How many rows without labels stand beside all those with labels, so that they are this share of an epoch."""
    if share is None:
        return unlabelled
    wanted = max(1, round(labelled * share / (1 - share)))
    if wanted > unlabelled:
        raise UsageError(
            f"data.unlabelled_share={share:g} takes {wanted:,} texts without labels beside {labelled:,} labelled rows, "
            f"and there are {unlabelled:,} (accepted: up to {unlabelled / (labelled + unlabelled):.3g})"
        )
    return wanted
