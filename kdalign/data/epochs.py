"""Divide rows into batches, for any number of ranks: an epoch's, evaluation's in order of length, and a few examples'.

Randomness is a function of (seed, epoch), so the position in the data is the step number and nothing else.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Int

from kdalign.data.batches import Batch, collate
from kdalign.data.epoch_order import (
    MOST_PERMUTED,
    NEIGHBOURHOOD,
    EpochBatches,
    ListedBatches,
    NeighbourhoodBatches,
    sample_numbers,
)
from kdalign.data.tokenized_split import EpochSampler, TokenizedSplit
from kdalign.recipe import TrainSettings


def epoch_batches(
    lengths: Int[np.ndarray[Any, Any], "n"],
    size: int,
    seed: int,
    epoch: int,
    tokens: int | None = None,
    mixture: EpochSampler | None = None,
) -> EpochBatches:
    """Divide an epoch into global batches: every row once, rows of similar length together, in random order.

    A ``mixture`` samples the rows first.

    Rows are shuffled, cut into neighbourhoods, sorted by length inside each, cut into batches, and the batches
    shuffled. A batch holds ``size`` rows (the last of the sort may be short; it is kept), or with ``tokens`` about that
    many tokens: no row may then be empty or longer.

    Of more than ``MOST_PERMUTED`` rows, neighbourhoods are made when they are read, and batches shuffled inside each.
    """
    if len(lengths) > MOST_PERMUTED and mixture is None:
        steps = steps_per_epoch(lengths, size, tokens)
        return NeighbourhoodBatches(lengths, size, seed, epoch, tokens, steps)
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(lengths) if mixture is None else mixture.rows(generator))
    together = size if tokens is None else max(1, round(tokens / lengths.mean()))
    neighbourhoods = np.split(shuffled, range(together * NEIGHBOURHOOD, len(shuffled), together * NEIGHBOURHOOD))
    ordered = [rows[np.argsort(lengths[rows], kind="stable")] for rows in neighbourhoods]
    if tokens is None:
        batches = [rows[i : i + size] for rows in ordered for i in range(0, len(rows), size)]
    else:  # alternate the order, so that no batch joins one neighbourhood's longest rows to the next one's shortest
        rows = np.concatenate([rows[:: 1 - 2 * (number % 2)] for number, rows in enumerate(ordered)])
        before = np.cumsum(lengths[rows]) - lengths[rows]
        batch = before * steps_per_epoch(lengths, size, tokens) // lengths.sum()
        batches = np.split(rows, np.flatnonzero(np.diff(batch)) + 1)
    return ListedBatches(batches, generator.permutation(len(batches)))


def steps_per_epoch(
    lengths: Int[np.ndarray[Any, Any], "n"], size: int, tokens: int | None = None, mixture: EpochSampler | None = None
) -> int:
    """Count the batches of ``epoch_batches``."""
    if tokens is not None:
        assert mixture is None, "checked: a mixture is one of rows, not of tokens"
        return max(1, int(lengths.sum()) // tokens)
    whole, rest = divmod(len(lengths if mixture is None else mixture), size * NEIGHBOURHOOD)
    return whole * NEIGHBOURHOOD + -(-rest // size)


def micro_batches(
    encoded: TokenizedSplit,
    rows: Sequence[int],
    rank: int,
    ranks: int,
    micro_batch: int | None,
    draw: tuple[int, int] = (0, 0),
) -> list[Batch]:
    """Collate this rank's share of a global batch in micro-batches; over all ranks they hold each row once.

    Every rank gets the same number of micro-batches, so that their gradients meet; a rank left without a row runs
    a stand-in that is not counted.
    """
    size = micro_batch or -(-len(rows) // ranks)
    count = -(-len(rows) // (size * ranks))
    mine = rows[rank::ranks]  # rows are sorted by length: a stride gives every rank the same work
    shares = [mine[i * size : (i + 1) * size] for i in range(count)]
    return [
        collate(encoded, share, draw=draw) if share else collate(encoded, rows[:1], counted=False, draw=draw)
        for share in shares
    ]


def fewest_rows(rows: int, ranks: int, micro_batch: int | None) -> int:
    """Count the rows of the smallest of ``micro_batches`` over all ranks, of a global batch of this many rows."""
    size = micro_batch or -(-rows // ranks)
    last = (-(-rows // (size * ranks)) - 1) * size
    return max(1, min(size, rows // ranks - last))  # the last rank has the fewest; without a row it has a stand-in


def in_order(encoded: TokenizedSplit, size: int, tokens: bool = False) -> Iterator[tuple[list[int], Batch]]:
    """Batch all rows once by similar length, as ``rows_in_order`` does; each batch with its row numbers."""
    return ((rows, collate(encoded, rows)) for rows in rows_in_order(encoded, size, tokens))


def rows_in_order(encoded: TokenizedSplit, size: int, tokens: bool = False) -> Iterator[list[int]]:
    """Divide all rows once into batches of similar length, for evaluation.

    A batch holds ``size`` rows, or with ``tokens`` as many as fill that many positions, at least one.
    """
    lengths = encoded.lengths
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        # From the longest down: the time left is never underestimated, and memory peaks at once.
        rows = order[::-1][start : start + (max(1, size // max(8, lengths[order[-1 - start]])) if tokens else size)]
        start += len(rows)
        yield rows.tolist()


def total_steps(settings: TrainSettings, encoded: TokenizedSplit) -> int:
    """Count a run's optimizer steps: a given number, those that reach a token budget, or those of all epochs."""
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.max_tokens is None:
        epoch_size = steps_per_epoch(encoded.lengths, settings.batch_size, settings.batch_tokens, encoded.mixture)
        return max(1, round(settings.epochs * epoch_size))
    steps, left, lengths, mixture = 0, settings.max_tokens, encoded.lengths, encoded.mixture
    first, tokens = 0, int(lengths.sum())
    if mixture is None:  # every epoch has the same tokens and steps
        first = (left - 1) // tokens
        steps = first * steps_per_epoch(lengths, settings.batch_size, settings.batch_tokens)
        left -= first * tokens
    for epoch in count(first):
        for rows in epoch_batches(lengths, settings.batch_size, settings.seed, epoch, settings.batch_tokens, mixture):
            steps, left = steps + 1, left - int(lengths[rows].sum())
            if left <= 0:
                return steps
    raise AssertionError("epochs never end")


_EXAMPLES = 512


_BATCH = 32


def sample_batches(encoded: TokenizedSplit, seed: int, tokens: int) -> Iterator[Batch]:
    """Sample a few examples by the seed, in batches within a token budget (at least one example)."""
    return (batch for _, batch in in_order(encoded.take(sample_rows(encoded, seed, tokens)), _BATCH))


def sample_rows(encoded: TokenizedSplit, seed: int, tokens: int) -> list[int]:
    """Return the numbers of the examples that ``sample_batches`` takes."""
    rows = sample_numbers([seed, 2], len(encoded), _EXAMPLES)
    enough = int(np.searchsorted(np.cumsum(encoded.lengths[rows]), tokens, side="right"))
    taken: list[int] = rows[: max(1, enough)].tolist()
    return taken
