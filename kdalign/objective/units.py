"""Count the units that a batch's losses are divided by."""

from collections.abc import Sequence

from kdalign.data.batches import Batch
from kdalign.data.media.grid import GRID
from kdalign.objective import losses
from kdalign.objective.terms import Unit


def count_rows(batches: Sequence[Batch]) -> list[list[int]]:
    """Count the texts and compared tokens of each micro-batch."""
    return [[int(batch.counted.sum()), int(batch.compared.sum())] for batch in batches]


def count_groups(rows: Sequence[Sequence[float]]) -> dict[Unit, float]:
    """Count the groups of micro-batches, by their rows as in ``count_rows``; fewer than three rows are none."""
    return {
        Unit.GROUP: float(sum(texts >= losses.LEAST_GROUP for texts, _ in rows)),
        Unit.TOKEN_GROUP: float(sum(tokens >= losses.LEAST_GROUP for _, tokens in rows)),
    }


def count_units(batches: Sequence[Batch]) -> dict[Unit, float]:
    """Count the units of micro-batches by their masks alone."""
    return {
        Unit.EXAMPLE: float(sum(int(batch.counted.sum()) for batch in batches)),
        Unit.LABELLED: float(sum(int(batch.supervised.sum()) for batch in batches)),
        Unit.TOKEN: float(sum(int(batch.tokens.sum()) for batch in batches)),
        Unit.COMPARED: float(sum(int(batch.compared.sum()) for batch in batches)),
        Unit.TARGET: float(sum(int(batch.predicted.sum()) for batch in batches if batch.targets is not None)),
        Unit.ANSWERED: float(sum(int(batch.answered.sum()) for batch in batches if batch.targets is not None)),
        Unit.PATCH: float(sum(int(batch.patches.sum()) for batch in batches if GRID in batch.inputs)),
        Unit.PAIRED: float(sum(int(batch.paired.sum()) for batch in batches if batch.told is not None)),
        Unit.MASKED: float(sum(int(batch.masked.sum()) for batch in batches)),
        **count_groups(count_rows(batches)),
    }
