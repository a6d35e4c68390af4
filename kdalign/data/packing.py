"""Pack documents one after another into full rows, all at once or some at a time."""

from collections.abc import Sequence

import numpy as np

from kdalign.data.token_rows import TokenRows
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from kdalign.result_cache import Draft

_BOUNDS = 1 << 20
"""Rows whose bounds are written together."""


def pack_documents(contents: TokenRows, start: Sequence[int], end: int, max_length: int) -> dict[str, TokenRows]:
    """Pack documents one after another into rows of ``max_length`` tokens; positions restart with each document.

    Args:
        contents: tokens of each document.
        start: tokens before each, one at least.
        end: token that is predicted after each.
        max_length: tokens of a row; the last one may be shorter.
    """
    begins = len(start) * np.arange(len(contents)) + contents.starts[:-1]  # index of each document in the stream
    lengths = contents.lengths + len(start)
    total = int(lengths.sum())
    rows = np.append(np.arange(0, total, max_length), total)
    ids = np.empty(total, dtype=np.int32)
    content = np.ones(total, dtype=bool)
    for number, token in enumerate(start):
        ids[begins + number], content[begins + number] = token, False
    ids[content] = contents.values
    targets = np.full(total, IGNORED, dtype=np.int32)
    targets[:-1] = ids[1:]
    for number in range(len(start) - 1):  # what precedes the text is not predicted
        targets[begins + number] = IGNORED
    targets[begins + lengths - 1] = end
    document = np.repeat(np.arange(len(contents), dtype=np.int32), lengths)
    index = np.arange(total)
    # A document that continues in a new row restarts there: positions must not exceed the row's length.
    positions = index - np.maximum(np.repeat(begins, lengths), rows[:-1].repeat(np.diff(rows)))
    columns = {"input_ids": ids, "targets": targets, "position_ids": positions.astype(np.int32), "document": document}
    return {name: TokenRows(values, rows) for name, values in columns.items()}


class PackedDraft:
    """Packed rows that grow in a draft: those of several splits, packed as if their documents were one split's."""

    def __init__(self, draft: Draft, max_length: int) -> None:
        self._draft, self._max_length = draft, max_length
        self._tokens = self._documents = 0
        self._names: tuple[str, ...] = ()

    def append(self, packed: TokenizedSplit, documents: int) -> None:
        """Append the rows of a split of some documents, which ``pack_documents`` has packed."""
        values = {name: rows.values for name, rows in packed.token_rows.items()}
        index, document = self._tokens + np.arange(len(values["document"])), values["document"]
        first = np.append(True, document[1:] != document[:-1])[: len(document)]
        begins = index[first][np.cumsum(first) - 1]
        positions = index - np.maximum(begins, index - index % self._max_length)
        values |= {"document": document + np.int32(self._documents), "position_ids": positions.astype(np.int32)}
        for name, tokens in values.items():
            self._draft.append(f"values/{name}", tokens)
        self._names = tuple(values)
        self._tokens, self._documents = self._tokens + len(index), self._documents + documents

    def finish(self) -> None:
        """Write the bounds of all rows."""
        total, step = self._tokens, _BOUNDS * self._max_length
        for begin in range(0, total, step):
            starts = np.arange(begin, min(total, begin + step), self._max_length, dtype=np.int64)
            ends = np.minimum(starts + self._max_length, total)
            for name in self._names:
                if not begin:
                    self._draft.append(f"starts/{name}", starts[:1])
                self._draft.append(f"starts/{name}", ends)
                self._draft.append(f"sizes/{name}", (ends - starts).astype(np.int32))
