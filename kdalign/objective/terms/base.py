"""What terms look at, and what their sums are divided by."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kdalign.data.batches import Batch
from kdalign.models.architecture import Layer
from kdalign.models.capture import Activations
from kdalign.objective import losses
from kdalign.objective.terms.layer_weights import LAYER_WEIGHTS, LayerWeights


class Signal(StrEnum):
    """What a term looks at."""

    LOGITS = "logits"
    HIDDEN = "hidden"
    ATTENTION = "attention"
    CROSS = "cross"
    EMBEDDINGS = "embeddings"
    RELATIONS = "relations"
    LAYERS = "layers"
    """Hidden states as they are, of either width."""
    AGAIN = "again"
    """The student's hidden states by a second forward, with other dropout."""
    FILLED = "filled"
    """The student's features of tokens that are masked beside, by a forward of its own."""
    TAUGHT_ATTENTION = "taught attention"
    """The teacher's attention alone."""


class Unit(StrEnum):
    """What a term's sum is divided by."""

    EXAMPLE = "example"
    LABELLED = "labelled example"
    """An example whose label is known: all, where no text without labels is learnt from."""
    TOKEN = "token"
    COMPARED = "compared"
    """A token for which the teacher has something to be compared with: all, where it reads the same tokens."""
    TARGET = "target"
    ANSWERED = "answered"
    """A target token that the teacher is asked for, too: all, where it reads the same tokens."""
    MASKED = "masked token"
    """A token that is masked beside, to be filled in."""
    GROUP = "group"
    """A micro-batch, over all ranks, whose texts are compared with one another."""
    TOKEN_GROUP = "token group"
    """The same whose tokens are."""


@dataclass(frozen=True)
class TermInputs:
    """What the terms see of a micro-batch. ``teacher`` is None where nothing needs one."""

    student: Activations
    teacher: Activations | None
    batch: Batch
    _apart: dict[tuple[Layer, Layer], losses.PairDistances] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def taught(self) -> Activations:
        """The teacher's signals."""
        assert self.teacher is not None, "a term that needs the teacher runs only with one"
        return self.teacher

    def apart(self, ours: Layer, theirs: Layer) -> losses.PairDistances:
        """How far apart the features of a pair of layers are, worked out once for all terms."""
        found, pair = self._apart, (ours, theirs)
        if pair not in found:
            found[pair] = losses.PairDistances.of(self.student.projected[pair], self.student.targets[pair])
        return found[pair]

    @property
    def labels(self) -> Tensor:
        """The labels; where one is not known (``batch.labelled``), -100, or NaN for a score."""
        assert self.batch.labels is not None, "training examples have labels"
        return self.batch.labels

    @property
    def known_labels(self) -> Tensor:
        """The labels; 0 for an example that is not ``batch.supervised``."""
        return torch.where(self.batch.supervised, self.labels, 0)


class LossTerm(Protocol):
    """One addend: the sum of its loss over the micro-batch's units."""

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that must be captured, of both models."""

    @property
    def unit(self) -> Unit:
        """What its sum is divided by."""

    def __call__(self, view: TermInputs) -> Tensor:
        """The sum over this micro-batch's units."""


@runtime_checkable
class LayerTerm(Protocol):
    """A term that compares layers at a place, and takes their lambda_l of it."""

    place: "LayerPairs"


@dataclass(frozen=True)
class LayerPairs:
    """Where layers are compared: one stack of the plan.

    Attributes:
        pairs: (student layer, teacher layer, lambda_l); where these change, what they are at first.
        reads_target: whether it is the decoder of an encoder-decoder, whose positions are those of the target.
        looks_back: whether a position sees those before it alone.
        weighting: how lambda_l change, a key of ``LAYER_WEIGHTS``; other words for not at all.
        changing: one term's lambda_l, where they change.
    """

    pairs: tuple[tuple[Layer, Layer, float], ...]
    reads_target: bool = False
    looks_back: bool = False
    weighting: str = "static"
    changing: LayerWeights | None = None

    def of_one_term(self) -> "LayerPairs":
        """The same place for a term, whose lambda_l are its own where they change."""
        made = LAYER_WEIGHTS.get(self.weighting)
        return self if made is None else replace(self, changing=made(len(self.pairs)))

    def over_layers(self, distances: Sequence[Tensor]) -> Tensor:
        """The sum of what the pairs' distances are, each one number, weighted by lambda_l as they are now."""
        if self.changing is not None:
            weighted: Tensor = self.changing(torch.stack(list(distances)))
            return weighted
        shares = [share for _, _, share in self.pairs]
        return torch.stack([share * distance for share, distance in zip(shares, distances, strict=True)]).sum()

    @property
    def unit(self) -> Unit:
        """What a sum over its positions is divided by."""
        return Unit.TARGET if self.reads_target else Unit.COMPARED

    def mask(self, batch: Batch) -> Tensor:
        """(batch, time), the positions that count."""
        return batch.predicted if self.reads_target else batch.compared

    def visible(self, batch: Batch) -> Tensor:
        """(batch, time, time), which positions each position may be related to: real, and of its own document."""
        given = batch.inputs["decoder_attention_mask" if self.reads_target else "attention_mask"].bool()
        if given.ndim == 4:  # documents that are packed, which do not see each other
            return given[:, 0]
        if batch.matching is not None:
            given = given & batch.matching.compared
        seen = given[:, None, :].expand(-1, given.size(1), -1)
        return seen.tril() if self.looks_back else seen
