"""Signals, units, inputs and layer pairs of loss terms."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kdalign.data.batches import Batch
from kdalign.models.architecture import Layer
from kdalign.models.capture import Activations, Signal
from kdalign.objective import losses
from kdalign.objective.terms.layer_weights import LAYER_WEIGHTS, LayerWeights


class Unit(StrEnum):
    """Unit whose number a term's sum is divided by."""

    EXAMPLE = "example"
    LABELLED = "labelled example"
    """An example with a known label: all of them without unlabelled text."""
    TOKEN = "token"
    COMPARED = "compared"
    """A token with a counterpart at every teacher, or at the row's own: all of them if all read the same tokens."""
    TARGET = "target"
    ANSWERED = "answered"
    """A target token that the teacher predicts, too: all of them if both models read the same tokens."""
    PATCH = "patch"
    """A position of the image of a pair of image and text."""
    MASKED = "masked token"
    """A masked token in the masked copy of a text."""
    PAIRED = "paired example"
    """An example whose transcript has a token that a teacher of text reads: nearly all of them."""
    GROUP = "group"
    """A micro-batch, over all ranks, whose texts are compared."""
    TOKEN_GROUP = "token group"
    """A micro-batch, over all ranks, whose tokens are compared."""


@dataclass(frozen=True)
class TermInputs:
    """A micro-batch and both models' activations on it. ``teacher_activations`` is None if no term needs it."""

    student: Activations
    teacher_activations: Activations | None
    batch: Batch
    _apart: dict[tuple[Layer, Layer], losses.PairDistances] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def teacher(self) -> Activations:
        """The teacher's activations."""
        assert self.teacher_activations is not None, "a term that needs the teacher runs only with one"
        return self.teacher_activations

    def apart(self, ours: Layer, theirs: Layer) -> losses.PairDistances:
        """Distances of the features of a pair of layers, computed once for all terms."""
        found, pair = self._apart, (ours, theirs)
        if pair not in found:
            found[pair] = losses.PairDistances.of(self.student.projected[pair], self.student.targets[pair])
        return found[pair]

    @property
    def labels(self) -> Tensor:
        """Labels; -100, or NaN for a score, if unknown (``batch.labelled``)."""
        assert self.batch.labels is not None, "training examples have labels"
        return self.batch.labels

    @property
    def known_labels(self) -> Tensor:
        """Labels; 0 for examples that are not ``batch.supervised``."""
        return torch.where(self.batch.supervised, self.labels, 0)


class LossTerm(Protocol):
    """An addend of the objective: the sum of a loss over the micro-batch's units."""

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals to capture of both models."""

    @property
    def unit(self) -> Unit:
        """Unit that its sum is divided by."""

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum the loss over this micro-batch's units."""


@runtime_checkable
class LayerTerm(Protocol):
    """A term that compares pairs of layers, weighted by lambda_l."""

    place: "LayerPairs"


@dataclass(frozen=True)
class LayerPairs:
    """Compared pairs of layers of one stack.

    Attributes:
        pairs: (student layer, teacher layer, initial lambda_l).
        reads_target: true for the decoder of an encoder-decoder, whose positions are those of the target.
        reads_image: true for what sees the image of a pair of image and text.
        looks_back: true if a position sees only those before it.
        weighting: change of lambda_l, a key of ``LAYER_WEIGHTS``; other words for none.
        changing: lambda_l of one term, if they change.
        teacher: number of the teacher whose layers they are.
        pooled: true if features are averaged, so that an example has one position.
    """

    pairs: tuple[tuple[Layer, Layer, float], ...]
    reads_target: bool = False
    reads_image: bool = False
    looks_back: bool = False
    weighting: str = "static"
    changing: LayerWeights | None = None
    teacher: int = 0
    pooled: bool = False

    def of_one_term(self) -> "LayerPairs":
        """Copy for one term, with changing lambda_l of its own."""
        made = LAYER_WEIGHTS.get(self.weighting)
        return self if made is None else replace(self, changing=made(len(self.pairs)))

    def over_layers(self, distances: Sequence[Tensor]) -> Tensor:
        """Sum the pairs' distances, one number each, weighted by the current lambda_l."""
        if self.changing is not None:
            weighted: Tensor = self.changing(torch.stack(list(distances)))
            return weighted
        shares = [share for _, _, share in self.pairs]
        return torch.stack([share * distance for share, distance in zip(shares, distances, strict=True)]).sum()

    @property
    def unit(self) -> Unit:
        """Unit of a sum over positions."""
        if self.pooled:
            return Unit.PAIRED
        if self.reads_image:
            return Unit.PATCH
        return Unit.ANSWERED if self.reads_target else Unit.COMPARED

    def mask(self, batch: Batch) -> Tensor:
        """(batch, time), counted positions, of the rows that the teacher teaches."""
        if self.pooled:
            return batch.paired[:, None]
        mask = batch.answered if self.reads_target else batch.patches if self.reads_image else batch.compared
        return mask if batch.taught_by is None else mask & (batch.taught_by == self.teacher)[:, None]

    def texts(self, batch: Batch) -> Tensor:
        """(batch,), counted rows that the teacher teaches."""
        return batch.counted if batch.taught_by is None else batch.counted & (batch.taught_by == self.teacher)

    def visible(self, batch: Batch) -> Tensor:
        """(batch, time, time), positions that each position may relate to: real ones of its own document."""
        if self.reads_image:
            patches = batch.patches
            return patches[:, None].expand(-1, patches.size(1), -1)
        given = batch.inputs["decoder_attention_mask" if self.reads_target else "attention_mask"].bool()
        if given.ndim == 4:  # packed documents, which do not see each other
            return given[:, 0]
        matching = batch.read_by(self.teacher).matching
        if matching is not None:
            given = given & (matching.output if self.reads_target else matching).compared
        seen = given[:, None, :].expand(-1, given.size(1), -1)
        return seen.tril() if self.looks_back else seen
