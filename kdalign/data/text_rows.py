"""Rows of texts in one array of bytes, which may be mapped from a file: strings exist while they are read."""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Int, UInt8

from kdalign.data.media.rows import MediaRows
from kdalign.result_cache import Draft, release_pages

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 10_000
"""Rows that are read together in a pass over all."""
_SCATTERED = 64
"""Rows here and there that are read together: with each the system maps some more of the file."""
_BLOCK = 1 << 24
"""Bytes that are hashed together."""


class TextRows(Sequence[str]):
    """A column of texts.

    Attributes:
        values: (bytes,), the texts in UTF-8, each followed by a zero byte.
        starts: (rows + 1,), index in ``values`` at which each row starts, and at which the last one ends.
        rows: (selected,), numbers of the rows that are the column's, in its order; None for all.
    """

    def __init__(
        self,
        values: UInt8[np.ndarray[Any, Any], "bytes"],
        starts: Int[np.ndarray[Any, Any], "bounds"],
        rows: Int[np.ndarray[Any, Any], "selected"] | None = None,
    ) -> None:
        self.values, self.starts, self.rows = values, starts, rows

    @property
    def mapped(self) -> bool:
        """True for all rows of a file, or a run of them."""
        return self.rows is None

    def take(self, rows: Sequence[int]) -> "TextRows":
        """Select rows, in this order, in 8 bytes for each, or in none if they follow one another."""
        if isinstance(rows, range) and rows.step == 1 and self.rows is None:
            return TextRows(self.values, self.starts[rows.start : max(rows.start, rows.stop) + 1])
        numbers = np.asarray(rows, dtype=np.int64)
        return TextRows(self.values, self.starts, numbers if self.rows is None else self.rows[numbers])

    def update(self, digest: "_Hash") -> None:
        """Add every text and a zero byte after each to a hash."""
        if self.rows is None:
            for start in range(int(self.starts[0]), int(self.starts[-1]), _BLOCK):
                digest.update(self.values[start : min(start + _BLOCK, int(self.starts[-1]))].data)
                release_pages(self.values)
        else:
            for row in self.rows:
                digest.update(self.values[self.starts[row] : self.starts[row + 1]].data)

    def holds_zeros(self) -> bool:
        """Return whether a text has a zero byte, beside those that end texts."""
        if self.rows is not None:
            return any("\0" in text for text in self)
        zeros = 0
        for start in range(int(self.starts[0]), int(self.starts[-1]), _BLOCK):
            block = self.values[start : min(start + _BLOCK, int(self.starts[-1]))]
            zeros += len(block) - int(np.count_nonzero(block))
            release_pages(self.values)
        return zeros > len(self)

    def sizes(self, start: int, end: int) -> Int[np.ndarray[Any, Any], "rows"]:
        """Bytes of neighbouring rows."""
        rows = slice(start, end) if self.rows is None else self.rows[start:end]
        first, after = (self.starts[:-1][rows], self.starts[1:][rows])
        return np.asarray(after - first - 1)

    def __len__(self) -> int:
        return len(self.starts) - 1 if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> "TextRows": ...

    def __getitem__(self, row: int | slice) -> "str | TextRows":
        if isinstance(row, slice):
            return self.take(range(*row.indices(len(self))))
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = row % len(self) if self.rows is None else int(self.rows[row])
        return self.values[self.starts[number] : self.starts[number + 1] - 1].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        chunk = CHUNK if self.rows is None else _SCATTERED
        for start in range(0, len(self), chunk):
            yield from self._read(start, min(start + chunk, len(self)))

    def _read(self, start: int, end: int) -> list[str]:
        """Decode neighbouring rows, and give the memory of the file back."""
        if self.rows is not None:
            texts = [self[row] for row in range(start, end)]
        else:
            bounds = self.starts[start : end + 1].tolist()
            data, first = self.values[bounds[0] : bounds[-1]].tobytes(), bounds[0]
            texts = [data[a - first : b - first - 1].decode() for a, b in pairwise(bounds)]
        release_pages(self.values, self.starts)
        return texts

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"TextRows({list(self[:3])!r}{', ...' if len(self) > 3 else ''}, {len(self):,} rows)"


class TextDraft:
    """A column of texts that grows in a draft, in which it has two arrays."""

    def __init__(self, draft: Draft, name: str) -> None:
        self._draft, self._name, self._end = draft, name, 0
        draft.append(f"starts/{name}", np.zeros(1, dtype=np.int64))
        draft.append(f"texts/{name}", np.zeros(0, dtype=np.uint8))

    def append(self, texts: Sequence[str]) -> None:
        """Append texts, which can be written as UTF-8."""
        written = [text.encode() + b"\0" for text in texts]
        ends = self._end + np.cumsum([len(text) for text in written], dtype=np.int64)
        self._end = int(ends[-1]) if len(ends) else self._end
        self._draft.append(f"texts/{self._name}", np.frombuffer(b"".join(written), dtype=np.uint8))
        self._draft.append(f"starts/{self._name}", ends)


def take_texts(column: Sequence[str], rows: Sequence[int]) -> Sequence[str]:
    """Select rows of a column of texts, sounds or images, in this order."""
    return column.take(rows) if isinstance(column, TextRows | MediaRows) else tuple(column[row] for row in rows)


def join_texts(columns: Sequence[Sequence[str]]) -> Sequence[str]:
    """Put the rows of several columns of texts, sounds or images one after the other."""
    first, *others = columns
    if not isinstance(first, MediaRows):
        return tuple(chain.from_iterable(columns))
    for column in others:
        assert isinstance(column, MediaRows), "rows of one modality are joined"
        first = first.joined(column)
    return first


def holds_zeros(column: Sequence[str]) -> bool:
    """Return whether a text of a column has a zero byte."""
    return column.holds_zeros() if isinstance(column, TextRows) else any("\0" in text for text in column)


def text_sizes(column: Sequence[str]) -> Int[np.ndarray[Any, Any], "rows"]:
    """Bytes of every text of a column in UTF-8."""
    if isinstance(column, TextRows):
        return column.sizes(0, len(column))
    sizes = (len(text.encode("utf-8", "surrogatepass")) for text in column)
    return np.fromiter(sizes, dtype=np.int64, count=len(column))


def longest_rows(columns: Sequence[Sequence[str]], n: int) -> list[int]:
    """Find the n rows with the most characters (of mapped columns, bytes) in all columns together, in their order."""
    kept, most = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for start in range(0, len(columns[0]), _SIZED):
        end = min(start + _SIZED, len(columns[0]))
        sizes = np.sum([_sizes(column, start, end) for column in columns], axis=0)
        longer = np.flatnonzero(sizes > most[-1] if 0 < n == len(most) else sizes >= 0)
        rows, sizes = np.concatenate([kept, start + longer]), np.concatenate([most, sizes[longer]])
        best = np.argsort(-sizes, kind="stable")[:n]
        kept, most = rows[best], sizes[best]
    return sorted(kept.tolist())


_SIZED = 1 << 20


def _sizes(column: Sequence[str], start: int, end: int) -> np.ndarray[Any, Any]:
    if isinstance(column, TextRows):
        sizes = column.sizes(start, end)
        release_pages(column.starts)
        return sizes
    return np.fromiter(map(len, column[start:end]), dtype=np.int64, count=end - start)
