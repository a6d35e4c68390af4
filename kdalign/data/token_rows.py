"""Rows of token numbers in one array: 4 bytes a token, where lists of Python integers take 8 to 36."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from kdalign.result_cache import Draft

Tokens = Int[np.ndarray[Any, Any], "tokens"]
Numbers = Int[np.ndarray[Any, Any], "rows"]

_CHUNK = 4096
"""Rows that exist as lists while an array is made of them."""


class TokenRows(Sequence[list[int]]):
    """A column of rows of token numbers; a row is given as a list.

    Attributes:
        values: (tokens,), the rows one after the other.
        starts: (rows + 1,), index in ``values`` at which each row starts, and at which the last one ends.
    """

    def __init__(
        self, values: Tokens, starts: Int[np.ndarray[Any, Any], "bounds"], sizes: Numbers | None = None
    ) -> None:
        """Take arrays as they are; ``sizes``, the numbers of tokens of the rows, may be given to be mapped as well."""
        self.values, self.starts, self._sizes = values, starts, sizes

    @classmethod
    def of(cls, rows: "Iterable[Sequence[int]]") -> "TokenRows":
        """Copy rows of integers into one array; rows that are one already stay as they are."""
        if isinstance(rows, TokenRows):
            return rows
        parts, lengths, chunk = [np.zeros(0, dtype=np.int32)], list[Any](), list[Sequence[int]]()
        for row in rows:
            chunk.append(row)
            if len(chunk) == _CHUNK:
                parts.append(_flat(chunk))
                lengths.append(_sizes(chunk))
                chunk = []
        parts.append(_flat(chunk))
        lengths.append(_sizes(chunk))
        return cls(np.concatenate(parts), _starts(np.concatenate(lengths)))

    @classmethod
    def concatenated(cls, columns: "Sequence[TokenRows]") -> "TokenRows":
        """Put the rows of several columns one after the other."""
        lengths = np.concatenate([column.lengths for column in columns])
        return cls(np.concatenate([column.values for column in columns]), _starts(lengths))

    @property
    def lengths(self) -> Numbers:
        """Number of tokens of each row."""
        return np.diff(self.starts) if self._sizes is None else self._sizes

    def take(self, rows: Sequence[int] | Numbers) -> "TokenRows":
        """Select rows, in this order."""
        numbers = np.asarray(rows, dtype=np.int64)
        assert not (numbers < 0).any(), "rows are counted from the first"
        lengths = self.lengths[numbers]
        starts = _starts(lengths)
        places = np.repeat(self.starts[numbers] - starts[:-1], lengths) + np.arange(starts[-1])
        return TokenRows(self.values[places], starts)

    def array(self, row: int) -> Tokens:
        """Return a row without copying it."""
        return self.values[self.starts[row] : self.starts[row + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, row: int) -> list[int]: ...

    @overload
    def __getitem__(self, row: slice) -> list[list[int]]: ...

    def __getitem__(self, row: int | slice) -> list[int] | list[list[int]]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        tokens: list[int] = self.array(row % len(self)).tolist()
        return tokens

    def __iter__(self) -> Iterator[list[int]]:
        return (self.array(row).tolist() for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenRows):
            return np.array_equal(self.starts, other.starts) and np.array_equal(self.values, other.values)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"TokenRows({list(self[:3])!r}{', ...' if len(self) > 3 else ''}, {len(self):,} rows)"


def hash_columns(columns: "Mapping[str, TokenRows]") -> str:
    """Hash the rows of all columns."""
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(repr((name, len(columns[name]))).encode())
        digest.update(np.ascontiguousarray(columns[name].starts, dtype=np.int64).data)
        digest.update(np.ascontiguousarray(columns[name].values, dtype=np.int32).data)
    return digest.hexdigest()


def append_rows(draft: Draft, name: str, rows: TokenRows) -> None:
    """Append rows to a column in a draft, in which it has three arrays."""
    last = draft.last(f"starts/{name}")
    if last is None:
        draft.append(f"starts/{name}", np.zeros(1, dtype=np.int64))
    draft.append(f"starts/{name}", rows.starts[1:] + (0 if last is None else int(last)))
    draft.append(f"sizes/{name}", rows.lengths.astype(np.int32))
    draft.append(f"values/{name}", rows.values)


def _sizes(rows: Sequence[Sequence[int]]) -> Numbers:
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))


def _starts(lengths: Numbers) -> Int[np.ndarray[Any, Any], "bounds"]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def _flat(rows: Sequence[Sequence[int]]) -> Tokens:
    """Join rows, in 32 bits: more is an error, as no vocabulary and no text is that large."""
    values = np.fromiter((token for row in rows for token in row), dtype=np.int64)
    if len(values) and max(abs(int(values.min())), int(values.max())) > np.iinfo(np.int32).max:
        raise OverflowError("a token number does not fit 32 bits")
    return values.astype(np.int32)
