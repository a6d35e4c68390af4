"""Tokenized examples of a split: columns of token rows, with labels or targets, and the sampling of an epoch's rows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from kdalign.data.media.inputs import MediaInputs
from kdalign.data.token_rows import TokenRows, hash_columns
from kdalign.data.transcript_rows import Transcripts

Corruption = Callable[[dict[str, list[int]], np.random.Generator], dict[str, list[int]]]
"""A random change of a row's columns before it is used; the generator is the row's own."""

IdRow = Sequence[int] | np.ndarray[Any, Any]
"""Integers of a row."""

TEACHER = "teacher "
"""Prefix of the columns that a teacher with another tokenizer reads."""

DECODER = "decoder "
"""Prefix of the spans of a decoder's positions, where an encoder has its own."""

TOLD = "told"
"""Column, after ``TEACHER``, that is 1 for a token of a transcript that a teacher of text reads, 0 for those around."""

RETURNED = "returned"
"""Column that is 0 for a position at which a teacher behind an API returned no tokens."""

CUT = "cut"
"""Column that is 1 for a token that is cut off: like padding, it is neither attended to nor counted."""

MASKED = "masked "
"""Prefix of a classifier's masked copy of a row, its ids and its targets."""

IGNORED = -100
"""Target of positions without a prediction: padding, context, tokens that are not masked."""


@dataclass(frozen=True)
class EpochSampler:
    """Sample an epoch's rows: all fixed rows, and a fresh sample of ``drawn`` of the others."""

    always: Int[np.ndarray[Any, Any], "n"]
    others: Int[np.ndarray[Any, Any], "m"]
    drawn: int

    def __len__(self) -> int:
        return len(self.always) + self.drawn

    def rows(self, generator: np.random.Generator) -> Int[np.ndarray[Any, Any], "rows"]:
        """Rows of an epoch, none of them twice."""
        return np.concatenate([self.always, np.sort(generator.choice(self.others, self.drawn, replace=False))])


@dataclass(frozen=True)
class TokenizedSplit:
    """Tokenized examples of a split, with labels or targets.

    Attributes:
        columns: tokenizer output by name (``input_ids``, ``token_type_ids``, ...), a row of ids per example, kept as
            ``TokenRows``; for a teacher with another tokenizer also its columns, and the spans of both sides' tokens
            (``start``, ``end``).
        labels: class numbers, scores, or None.
        pad: padding value of each column.
        truncated: number of examples longer than the limit.
        corrupt: random change of a row each time it is used, such as masking.
        passed_over: number of examples left out because the limit leaves nothing to predict.
        words: number of words, divided at white space, of the text whose tokens are predicted; 0 if not counted.
        left_to_right: true if a position sees only those before it, which decides how positions of two tokenizers are
            aligned.
        bytes: number of bytes of that text in UTF-8; 0 if not counted.
        groups: (rows,), group of each row that an interval resamples as one, such as the rows of a text; None if each
            row is its own.
        covered: number of characters in tokens of both the student and another tokenizer, one for each further
            tokenizer, and of all (white space aside); None with one.
        labelled: (rows,), false for an unknown label; None if all are known, or there are no labels.
        mixture: sampler of an epoch's rows; None for all rows.
        ends: tokens by which answers end, the student's and the teacher's with another tokenizer; None elsewhere.
        form: how what precedes the targets is written, for a score's signature; empty if it is the texts alone.
        taught_by: (rows,), number of the teacher of each row, such as 0, 1, 0 where the second row is the second
            teacher's; None if every teacher teaches all rows.
        readers: for each of several teachers whose tokenizers differ from one another, the prefix of its columns, or
            None if it reads the student's; empty if all teachers read alike.
        media: sounds or images of the rows, which a model reads instead of ``input_ids``; None for texts.
        transcripts: of rows whose frames a model labels (CTC), with as many targets as their labels; None elsewhere.
        remarks: sentence on what of the rows could not be used; empty if nothing.
    """

    columns: Mapping[str, Sequence[list[int]]]
    labels: np.ndarray[Any, Any] | None
    pad: dict[str, int]
    truncated: int = 0
    corrupt: Corruption | None = None
    words: int = 0
    passed_over: int = 0
    left_to_right: bool = False
    covered: tuple[int, ...] | None = None
    bytes: int = 0
    groups: np.ndarray[Any, Any] | None = None
    labelled: np.ndarray[Any, Any] | None = None
    mixture: EpochSampler | None = None
    ends: tuple[int, int] | None = None
    form: str = ""
    taught_by: np.ndarray[Any, Any] | None = None
    readers: tuple[str | None, ...] = ()
    media: MediaInputs | None = None
    transcripts: Transcripts | None = None
    remarks: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", {name: TokenRows.of(rows) for name, rows in self.columns.items()})

    def __len__(self) -> int:
        return len(self.columns["input_ids"]) if self.media is None else len(self.media.rows)

    @property
    def token_rows(self) -> dict[str, TokenRows]:
        """The columns with all that their type can do."""
        return {name: TokenRows.of(rows) for name, rows in self.columns.items()}

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Number of tokens, or of positions of its sound or image, of each example."""
        if self.media is not None and "input_ids" not in self.columns:
            return self.media.positions
        return TokenRows.of(self.columns["input_ids"]).lengths

    def fingerprint(self) -> str:
        """Hash what models read: tokens, targets, how rows are masked, and whose row each is; labels are left out."""
        taught_by = None if self.taught_by is None else self.taught_by.tolist()
        content: tuple[object, ...] = (
            hash_columns(self.token_rows),
            sorted(self.pad.items()),
            self.left_to_right,
            taught_by,
            None if self.corrupt is None else _describe(self.corrupt),
        )
        if self.media is not None:
            content = (*content, self.media.fingerprint())
        if self.transcripts is not None:
            content = (*content, self.transcripts.writes, self.transcripts.blank)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def take(self, rows: Sequence[int]) -> "TokenizedSplit":
        """Select rows, in this order."""
        numbers = np.asarray(rows, dtype=int)  # no rows are integers, too
        columns = {name: column.take(numbers) for name, column in self.token_rows.items()}
        labels = None if self.labels is None else self.labels[numbers]
        groups = None if self.groups is None else self.groups[numbers]
        known = None if self.labelled is None else self.labelled[numbers]
        # The rows' words and bytes are not known.
        taken = replace(self, columns=columns, labels=labels, groups=groups, words=0, bytes=0)
        taught_by = None if self.taught_by is None else self.taught_by[numbers]
        media = None if self.media is None else self.media.take(numbers)
        transcripts = None if self.transcripts is None else self.transcripts.take(numbers.tolist())
        taken = replace(taken, media=media, transcripts=transcripts)
        return replace(taken, labelled=known, mixture=None, taught_by=taught_by)

    def joined(self, others: "TokenizedSplit") -> "TokenizedSplit":
        """Append another split; rows of a side without labels are unlabelled."""
        assert self.labels is not None, "rows without labels are added to labelled ones"
        known = np.ones(len(self), dtype=bool) if self.labelled is None else self.labelled
        more = np.full(len(others), others.labels is not None)
        blank = IGNORED if np.issubdtype(self.labels.dtype, np.integer) else np.nan
        labels = np.full(len(others), blank, self.labels.dtype) if others.labels is None else others.labels
        mixture = self.mixture
        if mixture is not None:
            mixture = replace(mixture, always=np.append(mixture.always, len(self) + np.arange(len(others))))
        return replace(
            self,
            columns=_join_columns([self, others]),
            labels=np.concatenate([self.labels, labels]),
            truncated=self.truncated + others.truncated,
            covered=_merge_extra(self.covered, others.covered),
            labelled=None if known.all() and more.all() else np.concatenate([known, more]),
            mixture=mixture,
            taught_by=None
            if self.taught_by is None or others.taught_by is None
            else np.concatenate([self.taught_by, others.taught_by]),
            media=None if self.media is None or others.media is None else self.media.joined(others.media),
        )

    def with_unlabelled(self, others: "TokenizedSplit", an_epoch: int) -> "TokenizedSplit":
        """Append rows without labels; each epoch samples ``an_epoch`` of them."""
        both = self.joined(replace(others, labels=None))
        if an_epoch == len(others):
            return both
        return replace(both, mixture=EpochSampler(np.arange(len(self)), np.arange(len(self), len(both)), an_epoch))


def concatenate_splits(parts: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """Concatenate the rows of splits that were tokenized alike, all with labels or none, each by one teacher or not.

    They are of texts: sounds and images are read as one split.
    """
    of_texts = all(part.media is None and part.transcripts is None for part in parts)
    assert of_texts, "rows of sounds or images are read at once"
    first = parts[0]
    covered = first.covered
    for part in parts[1:]:
        covered = _merge_extra(covered, part.covered)
    return replace(
        first,
        columns=_join_columns(parts),
        labels=_concatenate([part.labels for part in parts]),
        truncated=sum(part.truncated for part in parts),
        passed_over=sum(part.passed_over for part in parts),
        words=sum(part.words for part in parts),
        bytes=sum(part.bytes for part in parts),
        groups=None,
        covered=covered,
        labelled=_concatenate([part.labelled for part in parts]),
        mixture=None,
        taught_by=_concatenate([part.taught_by for part in parts]),
    )


def _describe(corrupt: Corruption) -> tuple[str, dict[str, Any]]:
    """Name a random change, with all that decides it."""
    facts = {name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in vars(corrupt).items()}
    return getattr(corrupt, "__qualname__", type(corrupt).__qualname__), facts


def _join_columns(parts: Sequence[TokenizedSplit]) -> dict[str, TokenRows]:
    columns = [part.token_rows for part in parts]
    return {name: TokenRows.concatenated([each[name] for each in columns]) for name in columns[0]}


def _concatenate(arrays: Sequence[np.ndarray[Any, Any] | None]) -> np.ndarray[Any, Any] | None:
    known = [each for each in arrays if each is not None]
    return np.concatenate(known) if len(known) == len(arrays) else None


def _merge_extra(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if one is None or other is None else tuple(a + b for a, b in zip(one, other, strict=True))
