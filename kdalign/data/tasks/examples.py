"""Examples: the texts, sounds or images of a split, and their labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from kdalign.data.media.rows import MediaRows
from kdalign.data.text_rows import TextRows, holds_zeros, take_texts, text_sizes
from kdalign.result_cache import release_pages


@dataclass(frozen=True)
class Examples:
    """Texts and labels of a split.

    Attributes:
        texts: one column of texts, or two of the same length: tuples, or ``TextRows`` of a large split. The first
            may be ``MediaRows``, the sounds or images of the rows.
        labels: class numbers (int64) or scores (float64); None if the split has none.
        passed_over: number of documents without a word, which were left out.
        blank: number of rows with a blank text, which are kept.
        references: all reference texts of each row; empty if the second column is the only one.
        origins: value of the column ``DataSource.by`` in each row; empty without one.
    """

    split: str
    texts: tuple[Sequence[str], ...]
    labels: np.ndarray[Any, Any] | None
    passed_over: int = 0
    blank: int = 0
    references: tuple[tuple[str, ...], ...] = ()
    origins: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts[0])

    @property
    def media(self) -> MediaRows | None:
        """The sounds or images of the rows; None for texts."""
        first = self.texts[0]
        return first if isinstance(first, MediaRows) else None

    @property
    def mapped(self) -> bool:
        """True if the texts are mapped from a file, because they are many: a pass over them takes time."""
        return any(isinstance(column, TextRows) and column.mapped for column in self.texts)

    def take(self, rows: Sequence[int]) -> "Examples":
        """Select rows, in this order."""
        return replace(
            self,
            texts=tuple(take_texts(column, rows) for column in self.texts),
            labels=None if self.labels is None else self.labels[np.asarray(rows, dtype=np.int64)],
            references=tuple(self.references[row] for row in rows) if self.references else (),
            origins=tuple(self.origins[row] for row in rows) if self.origins else (),
        )

    def fingerprint(self) -> str:
        """Hash texts and labels.

        A zero byte ends each text. Where texts hold zero bytes themselves, the sizes of all are hashed, too, so that
        they are told from the same bytes that are cut elsewhere.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for column in self.texts:
            if isinstance(column, TextRows):
                column.update(digest)
                continue
            for text in column:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        for known in self.references:
            digest.update("\0".join(known).encode("utf-8", "surrogatepass") + b"\1")
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
            release_pages(self.labels)
        if any(map(holds_zeros, (*self.texts, *self.references))):
            digest = hashlib.sha256(digest.digest())
            for group in (self.texts, self.references):
                digest.update(np.int64(len(group)).tobytes())
                for column in group:
                    digest.update(np.int64(len(column)).tobytes() + text_sizes(column).tobytes())
        return digest.hexdigest()[:16]
