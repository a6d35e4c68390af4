"""Tokenized splits, and batches of their rows: padded token ids with masks, labels and targets."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kdalign.data.masks import document_mask, permutation_masks
from kdalign.data.token_matching import TokenAlignment, align_tokens

Corruption = Callable[[dict[str, list[int]], np.random.Generator], dict[str, list[int]]]
"""A random change of a row's columns before it is used; the generator is the row's own."""

TEACHER = "teacher "
"""Prefix of the columns that a teacher with another tokenizer reads."""

DECODER = "decoder "
"""Prefix of the spans of a decoder's positions, where an encoder has its own."""

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
        columns: tokenizer output by name (``input_ids``, ``token_type_ids``, ...), one list of ids per example; for a
            teacher with another tokenizer also its columns, and the spans of both sides' tokens (``start``, ``end``).
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
    """

    columns: dict[str, list[list[int]]]
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

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Number of tokens of each example."""
        return np.array([len(ids) for ids in self.columns["input_ids"]])

    def take(self, rows: Sequence[int]) -> "TokenizedSplit":
        """Select rows, in this order."""
        numbers = np.asarray(rows, dtype=int)  # no rows are integers, too
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        labels = None if self.labels is None else self.labels[numbers]
        groups = None if self.groups is None else self.groups[numbers]
        known = None if self.labelled is None else self.labelled[numbers]
        # The rows' words and bytes are not known.
        taken = replace(self, columns=columns, labels=labels, groups=groups, words=0, bytes=0)
        taught_by = None if self.taught_by is None else self.taught_by[numbers]
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
            columns={name: [*column, *others.columns[name]] for name, column in self.columns.items()},
            labels=np.concatenate([self.labels, labels]),
            truncated=self.truncated + others.truncated,
            covered=_merge_extra(self.covered, others.covered),
            labelled=None if known.all() and more.all() else np.concatenate([known, more]),
            mixture=mixture,
            taught_by=None
            if self.taught_by is None or others.taught_by is None
            else np.concatenate([self.taught_by, others.taught_by]),
        )

    def with_unlabelled(self, others: "TokenizedSplit", an_epoch: int) -> "TokenizedSplit":
        """Append rows without labels; each epoch samples ``an_epoch`` of them."""
        both = self.joined(replace(others, labels=None))
        if an_epoch == len(others):
            return both
        return replace(both, mixture=EpochSampler(np.arange(len(self)), np.arange(len(self), len(both)), an_epoch))


def concatenate_splits(parts: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """Concatenate the rows of splits that were tokenized alike, all with labels or none, each by one teacher or not."""
    first = parts[0]
    covered = first.covered
    for part in parts[1:]:
        covered = _merge_extra(covered, part.covered)
    return replace(
        first,
        columns={name: [row for part in parts for row in part.columns[name]] for name in first.columns},
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


def _concatenate(arrays: Sequence[np.ndarray[Any, Any] | None]) -> np.ndarray[Any, Any] | None:
    known = [each for each in arrays if each is not None]
    return np.concatenate(known) if len(known) == len(arrays) else None


def _merge_extra(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if one is None or other is None else tuple(a + b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Reading:
    """A batch in the tokens of a teacher with another tokenizer.

    Attributes:
        inputs: tensors (batch, theirs) by name, ``attention_mask`` among them.
        matching: alignment of the teacher's positions with the student's.
    """

    inputs: dict[str, Tensor]
    matching: TokenAlignment

    def to(self, device: torch.device) -> "Reading":
        """Move the reading to a device."""
        return Reading({name: each.to(device) for name, each in self.inputs.items()}, self.matching.to(device))

    def select(self, rows: Int[Tensor, "rows"]) -> "Reading":
        """Select rows of the batch."""
        return Reading({name: each[rows] for name, each in self.inputs.items()}, self.matching.select(rows))


@dataclass(frozen=True)
class Batch:
    """Padded examples.

    Attributes:
        inputs: tensors (batch, time) by name, ``attention_mask`` among them.
        labels: (batch,), or None.
        counted: (batch,), false for a stand-in that keeps a rank without examples in step.
        real: (batch, time), false for padding and for tokens that are cut off.
        targets: (batch, time), the token to predict at each position of the (decoder's) output, or ``IGNORED``; None
            for a classification task.
        other_inputs: inputs by name of a teacher with another tokenizer; None if it reads the student's.
        matching: alignment of that teacher's positions with the student's.
        rows: (batch,), numbers of the examples in their split.
        labelled: (batch,), false for an unknown label, which is ``IGNORED`` in ``labels``, or NaN for a score; None if
            all are known, or there are no labels.
        taught_by: (batch,), number of the teacher of each row, from 0; None if every teacher teaches all rows.
        returned: (batch, time), false where a teacher behind an API returned no tokens, such as within a word that it
            divides otherwise; None if there is no such position.
        readings: for each of several teachers whose tokenizers differ from one another, what it reads, or None if it
            reads the student's tokens; empty if all teachers read alike.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    counted: Bool[Tensor, "batch"]
    real: Bool[Tensor, "batch time"]
    targets: Tensor | None = None
    other_inputs: dict[str, Tensor] | None = None
    matching: TokenAlignment | None = None
    rows: Int[Tensor, "batch"] | None = None
    labelled: Bool[Tensor, "batch"] | None = None
    taught_by: Int[Tensor, "batch"] | None = None
    returned: Bool[Tensor, "batch time"] | None = None
    readings: tuple[Reading | None, ...] = ()

    def read_by(self, teacher: int) -> "Batch":
        """Return the batch as one of several teachers reads it, by its number from 0."""
        if not self.readings:
            return self
        reading = self.readings[teacher]
        if reading is None:
            return replace(self, readings=())
        return replace(self, readings=(), other_inputs=reading.inputs, matching=reading.matching)

    @property
    def supervised(self) -> Bool[Tensor, "batch"]:
        """(batch,), counted examples with a known label."""
        return self.counted if self.labelled is None else self.counted & self.labelled

    @property
    def tokens(self) -> Bool[Tensor, "batch time"]:
        """(batch, time), real tokens of counted examples."""
        return self.real & self.counted[:, None]

    @property
    def predicted(self) -> Bool[Tensor, "batch time"]:
        """(batch, time), positions of counted examples with a token to predict."""
        assert self.targets is not None, "a language-modelling task has targets"
        return (self.targets != IGNORED) & self.counted[:, None]

    @property
    def masked(self) -> Bool[Tensor, "batch time"]:
        """(batch, time), masked positions of counted examples' masked copies; none without such copies."""
        if MASKED + "targets" not in self.inputs:
            return torch.zeros_like(self.real)
        return (self.inputs[MASKED + "targets"] != IGNORED) & self.counted[:, None]

    @property
    def teacher_inputs(self) -> dict[str, Tensor]:
        """Inputs of the teacher."""
        return self.inputs if self.other_inputs is None else self.other_inputs

    @property
    def teacher_real(self) -> Bool[Tensor, "batch theirs"]:
        """(batch, the teacher's time), false for padding."""
        return self.real if self.other_inputs is None else self.other_inputs["attention_mask"].bool()

    @property
    def compared(self) -> Bool[Tensor, "batch time"]:
        """(batch, time), real tokens of counted examples that some position of every teacher is aligned with.

        Where rows are divided among teachers, of the row's own.
        """
        if self.readings:
            masks = torch.stack([self.read_by(number).compared for number in range(len(self.readings))])
            by = self.taught_by
            return masks.all(dim=0) if by is None else masks[by, torch.arange(len(by), device=by.device)]
        return self.tokens if self.matching is None else self.tokens & self.matching.compared

    @property
    def answered(self) -> Bool[Tensor, "batch time"]:
        """(batch, time), positions to predict at which the teacher predicts the same token."""
        asked = self.predicted if self.matching is None else self.predicted & (self.matching.output.answers >= 0)
        return asked if self.returned is None else asked & self.returned

    @property
    def partly_answered(self) -> bool:
        """True if the teacher may not predict the same token at every position."""
        return self.matching is not None or self.returned is not None

    def to(self, device: torch.device) -> "Batch":
        """Move the batch to a device."""
        return Batch(
            {name: value.to(device) for name, value in self.inputs.items()},
            None if self.labels is None else self.labels.to(device),
            self.counted.to(device),
            self.real.to(device),
            None if self.targets is None else self.targets.to(device),
            None
            if self.other_inputs is None
            else {name: value.to(device) for name, value in self.other_inputs.items()},
            None if self.matching is None else self.matching.to(device),
            None if self.rows is None else self.rows.to(device),
            None if self.labelled is None else self.labelled.to(device),
            None if self.taught_by is None else self.taught_by.to(device),
            None if self.returned is None else self.returned.to(device),
            tuple(None if each is None else each.to(device) for each in self.readings),
        )

    def select(self, rows: Int[Tensor, "rows"]) -> "Batch":
        """Select rows, in this order, at the same width."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        other = None if self.other_inputs is None else {name: each[rows] for name, each in self.other_inputs.items()}
        return replace(
            self,
            inputs={name: each[rows] for name, each in self.inputs.items()},
            labels=of(self.labels),
            counted=self.counted[rows],
            real=self.real[rows],
            targets=of(self.targets),
            other_inputs=other,
            matching=None if self.matching is None else self.matching.select(rows),
            rows=of(self.rows),
            labelled=of(self.labelled),
            taught_by=of(self.taught_by),
            returned=of(self.returned),
            readings=tuple(None if each is None else each.select(rows) for each in self.readings),
        )


def collate(
    encoded: TokenizedSplit,
    rows: Sequence[int],
    counted: bool = True,
    width: int | None = None,
    draw: tuple[int, int] = (0, 0),
) -> Batch:
    """Pad these rows on the right, to the longest of them or to ``width``.

    Args:
        encoded: the split.
        rows: their numbers.
        counted: false for a stand-in.
        width: least number of positions.
        draw: (seed, epoch) of a row's random changes, such as its masked tokens. They do not depend on its batch, so
            that splitting a batch changes nothing.
    """
    columns = {name: [column[row] for row in rows] for name, column in encoded.columns.items()}
    if encoded.corrupt is not None:
        drawn = []
        for number, row in enumerate(rows):
            whole = {name: column[number] for name, column in columns.items()}
            drawn.append(encoded.corrupt(whole, np.random.default_rng([*draw, row])))
        columns = {name: [each[name] for each in drawn] for name in drawn[0]}
    inputs = {name: _pad(column, encoded.pad[name], width) for name, column in columns.items()}
    real = _mask(columns["input_ids"], width)
    if CUT in inputs:
        real = real & (inputs.pop(CUT) == 0)
    inputs["attention_mask"] = real.long()
    if "document" in inputs:
        inputs["attention_mask"] = document_mask(inputs.pop("document"), real)
    if "order" in inputs:
        inputs |= permutation_masks(inputs.pop("order"), real)
    if "decoder_input_ids" in columns:
        inputs["decoder_attention_mask"] = _mask(columns["decoder_input_ids"], width).long()
    single, readings = None, tuple[Reading | None, ...]()
    if encoded.readers or TEACHER + "input_ids" in columns:
        places = {part: _pop_spans(inputs, part) for part in ("", DECODER) if f"{part}start" in inputs}
        read = {
            prefix: _read(columns, inputs, prefix, places, encoded.left_to_right, width)
            for prefix in dict.fromkeys(encoded.readers or (TEACHER,))
            if prefix is not None
        }
        single = read.get(TEACHER)
        readings = tuple(None if prefix is None else read[prefix] for prefix in encoded.readers)
    labels = None if encoded.labels is None else torch.from_numpy(encoded.labels[np.asarray(rows)])
    if labels is not None and labels.is_floating_point():
        labels = labels.float()
    targets, returned = inputs.pop("targets", None), inputs.pop(RETURNED, None)
    numbers = torch.tensor(rows)
    known = None if encoded.labelled is None else torch.from_numpy(encoded.labelled[np.asarray(rows)])
    each = None if encoded.taught_by is None else torch.from_numpy(encoded.taught_by[np.asarray(rows)])
    told = None if returned is None else returned == 1
    counts = torch.full((len(rows),), counted)
    other, matching = (None, None) if single is None else (single.inputs, single.matching)
    return Batch(inputs, labels, counts, real, targets, other, matching, numbers, known, each, told, readings)


def _read(
    columns: dict[str, list[list[int]]],
    inputs: dict[str, Tensor],
    prefix: str,
    places: dict[str, Tensor],
    left_to_right: bool,
    width: int | None,
) -> Reading:
    """Take a teacher's columns out of the padded inputs, and align them by the places of the student's tokens."""
    names = [name for name in inputs if name.startswith(prefix)]
    other = {name.removeprefix(prefix): inputs.pop(name) for name in names}
    other["attention_mask"] = _mask(columns[prefix + "input_ids"], width).long()
    matching = align_tokens(places[""], _pop_spans(other, ""), left_to_right)
    if "decoder_input_ids" in other:
        other["decoder_attention_mask"] = _mask(columns[prefix + "decoder_input_ids"], width).long()
        of_targets = align_tokens(places[DECODER], _pop_spans(other, DECODER), left_to_right=True)
        matching = replace(matching, decoder=of_targets)
    return Reading(other, matching)


def _pop_spans(inputs: dict[str, Tensor], part: str) -> Int[Tensor, "batch time 2"]:
    """Take the spans of a part's tokens out of the inputs."""
    return torch.stack([inputs.pop(f"{part}start"), inputs.pop(f"{part}end")], dim=-1)


def _pad(column: Sequence[Sequence[int]], pad: int, width: int | None) -> Int[Tensor, "batch time"]:
    longest = max(max(map(len, column)), width or 0)
    padded = np.full((len(column), longest), pad, dtype=np.int64)
    for line, ids in enumerate(column):
        padded[line, : len(ids)] = ids
    return torch.from_numpy(padded)


def _mask(column: Sequence[Sequence[int]], width: int | None) -> Bool[Tensor, "batch time"]:
    lengths = torch.tensor([len(ids) for ids in column])
    return torch.arange(max(int(lengths.max()), width or 0)) < lengths[:, None]


def teacher_inputs(batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """Iterate over the (first) teacher's inputs, a text or packed row at a time, with the mask of real tokens."""
    for each in batches:
        batch = each.read_by(0)
        inputs = batch.teacher_inputs
        kept = {name: inputs[name] for name in ("input_ids", "token_type_ids") if name in inputs}
        yield kept | {"attention_mask": batch.teacher_real.long()}
