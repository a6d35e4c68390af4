"""Passages of a causal model's rows: stretches that are read by themselves, such as the documents of a packed row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdalign.data.batches import Batch
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit


@dataclass(frozen=True)
class Passage:
    """A stretch of a row whose tokens see nothing before its first.

    Attributes:
        start: position of the row at which it begins.
        ids: its tokens, up to the last position with a token to predict.
        following: the token that the last position predicts.
    """

    start: int
    ids: tuple[int, ...]
    following: int

    @property
    def whole(self) -> tuple[int, ...]:
        """Its tokens and the one after them: each but the first is predicted from those before it."""
        return (*self.ids, self.following)


def split_row(ids: Sequence[int], targets: Sequence[int], positions: Sequence[int] | None = None) -> Iterator[Passage]:
    """Divide a row into its passages; those without a token to predict are left out.

    Args:
        ids: the row's tokens, without padding.
        targets: for each position the token to predict, or ``IGNORED``.
        positions: position of each token in its passage, from 0; None if the row is one passage.
    """
    starts = [0] if positions is None else [number for number, position in enumerate(positions) if position == 0]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        asked = [number for number in range(start, end) if targets[number] != IGNORED]
        if asked:
            last = asked[-1]
            yield Passage(start, tuple(ids[start : last + 1]), int(targets[last]))


def split_passages(encoded: TokenizedSplit) -> Iterator[tuple[int, Passage]]:
    """Divide all rows of a split: the number of the row, and each of its passages."""
    columns = encoded.columns
    positions = columns.get("position_ids")
    for row, (ids, targets) in enumerate(zip(columns["input_ids"], columns["targets"], strict=True)):
        for passage in split_row(ids, targets, None if positions is None else positions[row]):
            yield row, passage


def batch_passages(batch: Batch) -> Iterator[tuple[int, Passage]]:
    """Divide the rows of a batch, as ``split_passages`` divides those of the split that it comes from."""
    assert batch.targets is not None, "a language-modelling task has targets"
    columns = [batch.inputs["input_ids"].tolist(), batch.targets.tolist(), batch.real.sum(dim=1).tolist()]
    positions = batch.inputs["position_ids"].tolist() if "position_ids" in batch.inputs else None
    for row, (ids, targets, length) in enumerate(zip(*columns, strict=True)):
        placed = None if positions is None else positions[row][:length]
        for passage in split_row(ids[:length], targets[:length], placed):
            yield row, passage
