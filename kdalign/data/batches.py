"""Tokenized splits, and batches of their rows: padded token ids with masks, labels and targets."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kdalign.data.masks import document_mask, permutation_masks
from kdalign.data.media.grid import grid_in
from kdalign.data.media.readers import INPUT_MASK
from kdalign.data.token_matching import TokenAlignment, align_tokens
from kdalign.data.tokenized_split import CUT, DECODER, IGNORED, MASKED, RETURNED, TEACHER, TOLD, IdRow, TokenizedSplit


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
        inputs: tensors (batch, time) by name, ``attention_mask`` among them; sounds and images have shapes of their
            own.
        labels: (batch,), or None.
        counted: (batch,), false for a stand-in that keeps a rank without examples in step.
        real: (batch, time), false for padding and for tokens that are cut off.
        targets: (batch, time), the token to predict at each position of the (decoder's) output, or ``IGNORED``; None
            for a classification task. Of a model that labels frames (CTC), (batch, labels), the labels in their order.
        other_inputs: inputs by name of a teacher with another tokenizer, feature extractor or image processor; None if
            it reads the student's.
        matching: alignment of that teacher's positions with the student's.
        rows: (batch,), numbers of the examples in their split.
        labelled: (batch,), false for an unknown label, which is ``IGNORED`` in ``labels``, or NaN for a score; None if
            all are known, or there are no labels.
        taught_by: (batch,), number of the teacher of each row, from 0; None if every teacher teaches all rows.
        returned: (batch, time), false where a teacher behind an API returned no tokens, such as within a word that it
            divides otherwise; None if there is no such position.
        readings: for each of several teachers whose tokenizers differ from one another, what it reads, or None if it
            reads the student's tokens; empty if all teachers read alike.
        told: (batch, theirs), tokens of the transcript that a teacher of text reads in ``other_inputs``, without those
            around it and padding; None for other teachers.
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
    told: Bool[Tensor, "batch theirs"] | None = None

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
    def paired(self) -> Bool[Tensor, "batch"]:
        """(batch,), counted examples whose transcripts have a token that a teacher of text reads."""
        assert self.told is not None, "a teacher of text reads transcripts"
        return self.counted & self.told.any(dim=1)

    @property
    def patches(self) -> Bool[Tensor, "batch positions"]:
        """(batch, positions), positions of the images of counted examples, on the grid of the batch."""
        grid = grid_in(self.inputs)
        assert grid is not None, "images are compared on a grid"
        return self.counted[:, None].expand(-1, grid.positions)

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
        """Move the batch to a device; tensors in pinned memory are copied while the caller goes on."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))
        matching = None if self.matching is None else self.matching.to(device)
        readings = tuple(None if each is None else each.to(device) for each in self.readings)
        return replace(moved, matching=matching, readings=readings)

    def pinned(self, device: torch.device) -> "Batch":
        """Copy the batch into memory from which it is copied fastest to a CUDA device."""
        with torch.cuda.device(device):
            return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Change every tensor, but for alignments."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        other = None if self.other_inputs is None else {name: change(each) for name, each in self.other_inputs.items()}
        return replace(
            self,
            inputs={name: change(each) for name, each in self.inputs.items()},
            labels=of(self.labels),
            counted=change(self.counted),
            real=change(self.real),
            targets=of(self.targets),
            other_inputs=other,
            rows=of(self.rows),
            labelled=of(self.labelled),
            taught_by=of(self.taught_by),
            returned=of(self.returned),
            told=of(self.told),
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
            told=of(self.told),
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
    columns: dict[str, Sequence[IdRow]]
    if encoded.corrupt is None:
        columns = {name: [column.array(row) for row in rows] for name, column in encoded.token_rows.items()}
    else:
        wholes = [{name: column[row] for name, column in encoded.columns.items()} for row in rows]
        drawn = [
            encoded.corrupt(whole, np.random.default_rng([*draw, row])) for row, whole in zip(rows, wholes, strict=True)
        ]
        columns = {name: [each[name] for each in drawn] for name in drawn[0]}
    inputs = {name: _pad(column, encoded.pad[name], width) for name, column in columns.items()}
    media = None if encoded.media is None else encoded.media.read(rows, draw)
    real = _mask(columns["input_ids"], width) if "input_ids" in columns or media is None else media.real
    if CUT in inputs:
        real = real & (inputs.pop(CUT) == 0)
    inputs["attention_mask"] = real.long()
    if "document" in inputs:
        inputs["attention_mask"] = document_mask(inputs.pop("document"), real)
    if "order" in inputs:
        inputs |= permutation_masks(inputs.pop("order"), real)
    if "decoder_input_ids" in columns:
        inputs["decoder_attention_mask"] = _mask(columns["decoder_input_ids"], width).long()
    if media is not None:
        inputs |= media.inputs | ({INPUT_MASK: real.long()} if "input_ids" in columns else {})
    transcripts, of_transcript = _read_transcripts(columns, inputs, width)
    single, readings = _read_tokens(encoded, columns, inputs, width)
    labels = None if encoded.labels is None else torch.from_numpy(encoded.labels[np.asarray(rows)])
    if labels is not None and labels.is_floating_point():
        labels = labels.float()
    targets, returned = inputs.pop("targets", None), inputs.pop(RETURNED, None)
    read_by_teacher = transcripts
    if media is not None and media.teacher_inputs is not None:
        shared = {name: each for name, each in inputs.items() if name not in media.inputs}
        read_by_teacher = shared | media.teacher_inputs
    numbers = torch.tensor(rows)
    known = None if encoded.labelled is None else torch.from_numpy(encoded.labelled[np.asarray(rows)])
    each = None if encoded.taught_by is None else torch.from_numpy(encoded.taught_by[np.asarray(rows)])
    told = None if returned is None else returned == 1
    counts = torch.full((len(rows),), counted)
    other, matching = (read_by_teacher, None) if single is None else (single.inputs, single.matching)
    return Batch(
        inputs, labels, counts, real, targets, other, matching, numbers, known, each, told, readings, of_transcript
    )


def _read_transcripts(
    columns: Mapping[str, Sequence[IdRow]], inputs: dict[str, Tensor], width: int | None
) -> tuple[dict[str, Tensor] | None, Bool[Tensor, "batch theirs"] | None]:
    """Take what a teacher of text reads of transcripts out of the padded inputs, and which tokens are theirs."""
    if TEACHER + TOLD not in columns:
        return None, None
    read = _pop_teacher(columns, inputs, TEACHER, width)
    return read, read.pop(TOLD) == 1


def _read_tokens(
    encoded: TokenizedSplit, columns: Mapping[str, Sequence[IdRow]], inputs: dict[str, Tensor], width: int | None
) -> tuple[Reading | None, tuple[Reading | None, ...]]:
    """Take what teachers with other tokenizers read out of the padded inputs: that of one, or of each of several."""
    places = {part: _pop_spans(inputs, part) for part in ("", DECODER) if f"{part}start" in inputs}
    read = {
        prefix: _read(columns, inputs, prefix, places, encoded.left_to_right, width)
        for prefix in (dict.fromkeys(encoded.readers or (TEACHER,)) if places else ())
        if prefix is not None
    }
    return read.get(TEACHER), tuple(None if prefix is None else read[prefix] for prefix in encoded.readers)


def _read(
    columns: Mapping[str, Sequence[IdRow]],
    inputs: dict[str, Tensor],
    prefix: str,
    places: dict[str, Tensor],
    left_to_right: bool,
    width: int | None,
) -> Reading:
    """Take a teacher's columns out of the padded inputs, and align them by the places of the student's tokens."""
    other = _pop_teacher(columns, inputs, prefix, width)
    matching = align_tokens(places[""], _pop_spans(other, ""), left_to_right)
    if "decoder_input_ids" in other:
        other["decoder_attention_mask"] = _mask(columns[prefix + "decoder_input_ids"], width).long()
        of_targets = align_tokens(places[DECODER], _pop_spans(other, DECODER), left_to_right=True)
        matching = replace(matching, decoder=of_targets)
    return Reading(other, matching)


def _pop_teacher(
    columns: Mapping[str, Sequence[IdRow]], inputs: dict[str, Tensor], prefix: str, width: int | None
) -> dict[str, Tensor]:
    """Take a teacher's columns out of the padded inputs, and add their mask."""
    names = [name for name in inputs if name.startswith(prefix)]
    other = {name.removeprefix(prefix): inputs.pop(name) for name in names}
    return other | {"attention_mask": _mask(columns[prefix + "input_ids"], width).long()}


def _pop_spans(inputs: dict[str, Tensor], part: str) -> Int[Tensor, "batch time 2"]:
    """Take the spans of a part's tokens out of the inputs."""
    return torch.stack([inputs.pop(f"{part}start"), inputs.pop(f"{part}end")], dim=-1)


def _pad(column: Sequence[IdRow], pad: int, width: int | None) -> Int[Tensor, "batch time"]:
    longest = max(max(map(len, column)), width or 0)
    padded = np.full((len(column), longest), pad, dtype=np.int64)
    for line, ids in enumerate(column):
        padded[line, : len(ids)] = ids
    return torch.from_numpy(padded)


def _mask(column: Sequence[IdRow], width: int | None) -> Bool[Tensor, "batch time"]:
    lengths = torch.tensor([len(ids) for ids in column])
    return torch.arange(max(int(lengths.max()), width or 0)) < lengths[:, None]


def teacher_inputs(batches: Iterable[Batch]) -> Iterator[dict[str, Tensor]]:
    """Iterate over the (first) teacher's inputs, a text or packed row at a time, with the mask of real tokens."""
    for each in batches:
        batch = each.read_by(0)
        inputs = batch.teacher_inputs
        kept = {name: inputs[name] for name in ("input_ids", "token_type_ids") if name in inputs}
        yield kept | {"attention_mask": batch.teacher_real.long()}
