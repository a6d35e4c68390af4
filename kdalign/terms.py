"""The terms of the objective: each a small object over a pure loss, which says what it looks at and its unit.

A term returns a **sum** over the micro-batch's units; the objective divides once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from kdalign import losses
from kdalign.architecture import Layer
from kdalign.batches import Batch
from kdalign.capture import Signals, pooled
from kdalign.matching import Shared
from kdalign.vocabulary import vocabulary_losses


class Signal(StrEnum):
    """What a term looks at."""

    LOGITS = "logits"
    HIDDEN = "hidden"
    ATTENTION = "attention"
    CROSS = "cross"
    EMBEDDINGS = "embeddings"
    RELATIONS = "relations"


class Unit(StrEnum):
    """What a term's sum is divided by."""

    EXAMPLE = "example"
    TOKEN = "token"
    COMPARED = "compared"
    """A token for which the teacher has something to be compared with: all, where it reads the same tokens."""
    TARGET = "target"
    ANSWERED = "answered"
    """A target token that the teacher is asked for, too: all, where it reads the same tokens."""
    GROUP = "group"
    """A micro-batch whose examples are compared with one another."""


@dataclass(frozen=True)
class View:
    """What the terms see of a micro-batch. ``teacher`` is None where nothing needs one."""

    student: Signals
    teacher: Signals | None
    batch: Batch

    @property
    def taught(self) -> Signals:
        """The teacher's signals."""
        assert self.teacher is not None, "a term that needs the teacher runs only with one"
        return self.teacher

    @property
    def labels(self) -> Tensor:
        """The labels."""
        assert self.batch.labels is not None, "training examples have labels"
        return self.batch.labels


class LossTerm(Protocol):
    """One addend: the sum of its loss over the micro-batch's units."""

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that must be captured, of both models."""

    @property
    def unit(self) -> Unit:
        """What its sum is divided by."""

    def __call__(self, view: View) -> Tensor:
        """The sum over this micro-batch's units."""


@dataclass(frozen=True)
class HardLabels:
    """The labels themselves: cross-entropy, or squared error where the task is a score."""

    regression: bool
    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: View) -> Tensor:
        """Nats, or squared label units."""
        loss = losses.squared_error if self.regression else losses.hard_label_cross_entropy
        return loss(view.student.logits, view.labels, view.batch.counted)


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's answers: softened KL, or squared error where the task is a score (L_soft)."""

    temperature: float
    regression: bool
    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: View) -> Tensor:
        """Nats times the squared temperature, or squared label units."""
        student, teacher, counted = view.student.logits, view.taught.logits, view.batch.counted
        if self.regression:
            return losses.squared_error(student, teacher.squeeze(-1), counted)
        return losses.soft_target_kl(student, teacher, counted, self.temperature)


@dataclass(frozen=True)
class Place:
    """Where layers are compared: one stack of the plan.

    Attributes:
        pairs: (student layer, teacher layer, lambda_l).
        reads_target: whether it is the decoder of an encoder-decoder, whose positions are those of the target.
        looks_back: whether a position sees those before it alone.
    """

    pairs: tuple[tuple[Layer, Layer, float], ...]
    reads_target: bool = False
    looks_back: bool = False

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


@dataclass(frozen=True)
class HiddenCosine:
    """Direction of the features, weighted over layers by lambda_l (L_feat); each position lies in 0..2."""

    place: Place
    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})

    @property
    def unit(self) -> Unit:
        """Positions."""
        return self.place.unit

    def __call__(self, view: View) -> Tensor:
        """The sum over positions of the weighted distances."""
        mask = self.place.mask(view.batch)
        return torch.stack(
            [
                weight
                * losses.cosine_distance(view.student.projected[ours, theirs], view.student.targets[ours, theirs], mask)
                for ours, theirs, weight in self.place.pairs
            ]
        ).sum()


@dataclass(frozen=True)
class EmbeddingsCosine:
    """Direction of what a stack's first layer reads; both models have the same width."""

    place: Place
    stacks: tuple[str, str]
    needs: frozenset[Signal] = frozenset({Signal.EMBEDDINGS})

    @property
    def unit(self) -> Unit:
        """Positions."""
        return self.place.unit

    def __call__(self, view: View) -> Tensor:
        """The sum over positions; each lies in 0..2."""
        ours, theirs = self.stacks
        mask = self.place.mask(view.batch)
        return losses.cosine_distance(view.student.embeddings[ours], view.taught.embeddings[theirs], mask)


@dataclass(frozen=True)
class HiddenEuclid:
    """Distance of the features in the teacher's own spread, weighted over layers by lambda_l (L_dist).

    1 a position for a student that answers the teacher's mean. ``variances`` are the teacher layers'.
    """

    place: Place
    variances: Mapping[Layer, float]
    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})

    @property
    def unit(self) -> Unit:
        """Positions."""
        return self.place.unit

    def __call__(self, view: View) -> Tensor:
        """The sum over positions of the weighted distances."""
        mask = self.place.mask(view.batch)
        total = []
        for ours, theirs, weight in self.place.pairs:
            student, teacher = view.student.projected[ours, theirs], view.student.targets[ours, theirs]
            total.append(weight * losses.scaled_euclid(student, teacher, mask, self.variances[theirs]))
        return torch.stack(total).sum()


@dataclass(frozen=True)
class AttentionMaps:
    """Attention probabilities, weighted over layers by lambda_l (L_attn).

    Each query position lies in 0..2.

    Attributes:
        mean: compare their mean over heads.
    """

    place: Place
    mean: bool = False
    needs: frozenset[Signal] = frozenset({Signal.ATTENTION})

    @property
    def unit(self) -> Unit:
        """Query positions."""
        return self.place.unit

    def __call__(self, view: View) -> Tensor:
        """The sum over query positions of the weighted distances."""
        mask = self.place.mask(view.batch)
        total = []
        for ours, theirs, weight in self.place.pairs:
            student, teacher = view.student.mixed[ours, theirs], view.student.maps[ours, theirs]
            if self.mean:
                student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
            total.append(weight * losses.attention_distance(student, teacher, mask))
        return torch.stack(total).sum()


@dataclass(frozen=True)
class Relations:
    """How positions relate to one another by their values (or queries and keys, too), weighted over layers by lambda_l.

    Attributes:
        heads: relation heads.
        parts: of ``queries``, ``keys`` and ``values``, those that are compared; their mean counts.
    """

    place: Place
    heads: int
    parts: tuple[str, ...] = ("values",)
    needs: frozenset[Signal] = frozenset({Signal.RELATIONS})

    @property
    def unit(self) -> Unit:
        """Positions."""
        return self.place.unit

    def __call__(self, view: View) -> Tensor:
        """The sum over positions of the weighted divergences, in nats."""
        mask, visible = self.place.mask(view.batch), self.place.visible(view.batch)
        total = []
        for ours, theirs, weight in self.place.pairs:
            for part in self.parts:
                student, teacher = (
                    relation_heads(kept, self.heads)
                    for kept in (vars(view.student)[part][ours], vars(view.taught)[part][theirs])
                )
                divergence = losses.relation_divergence(student, teacher, visible, mask)
                total.append(weight / len(self.parts) * divergence)
        return torch.stack(total).sum()


def relation_heads(
    x: Float[Tensor, "batch heads time head_width"], number: int
) -> Float[Tensor, "batch number time width"]:
    """Heads put side by side and split again into another number of them, which divides their whole width."""
    whole = x.transpose(1, 2).flatten(2)
    return whole.view(*whole.shape[:2], number, -1).transpose(1, 2)


@dataclass(frozen=True)
class Embedding:
    """The teacher's embeddings as targets, by direction; both models have the same width."""

    needs: frozenset[Signal] = frozenset()
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: View) -> Tensor:
        """The sum over texts; each lies in 0..2."""
        return losses.embedding_distance(*_embeddings(view), view.batch.counted)


@dataclass(frozen=True)
class Similarity:
    """How alike the teacher finds the texts of a micro-batch; 1 where all are alike to the student."""

    needs: frozenset[Signal] = frozenset()
    unit: Unit = Unit.GROUP

    def __call__(self, view: View) -> Tensor:
        """The micro-batch's distance."""
        return losses.similarity_distance(*_embeddings(view), view.batch.counted)


def _embeddings(view: View) -> tuple[Tensor, Tensor]:
    return pooled(view.student.features, view.batch.real), pooled(view.taught.features, view.batch.taught_real)


@dataclass(frozen=True)
class Vocabulary:
    """A language model's tokens: cross-entropy with the text and divergence from the teacher, in one pass.

    Both need the logits, which exist for a block of rows at a time, so they are one term with two parts, ``hard`` and
    ``soft``, weighted here. The unit is the target token.

    Attributes:
        dtype: of the matrix products.
        shared: the entries that stand for the same in the teacher's vocabulary, where it is another.
    """

    hard: float
    soft: float
    divergence: str = "forward"
    temperature: float = 1.0
    dtype: torch.dtype | None = None
    shared: Shared | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of a weight above 0."""
        return tuple(name for name, weight in (("hard", self.hard), ("soft", self.soft)) if weight > 0)

    def __call__(self, view: View, units: Mapping[Unit, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted share of the step's mean over target tokens, and each part's, in nats.

        Where the teacher has another tokenizer, ``soft`` is the mean over the tokens that it is asked for, too.
        """
        asked, matching = view.batch.predicted, view.batch.matching
        assert view.batch.targets is not None, "a language-modelling task has targets"
        assert view.student.head is not None, "a language model has a vocabulary"
        taught = view.taught if self.soft > 0 else None
        features = None
        if taught is not None:
            features = taught.features if matching is None else matching.answered(taught.features)
        targets, answered = (units[unit] or 1 for unit in (Unit.TARGET, Unit.ANSWERED))  # without any, the sum is 0
        total, hard, soft = vocabulary_losses(
            view.student.features[asked],
            view.student.head,
            view.batch.targets[asked],
            hard=self.hard,
            soft=self.soft * (targets / answered),
            teacher=None if features is None else features[asked],
            teacher_head=None if taught is None else taught.head,
            divergence=self.divergence,
            temperature=self.temperature,
            dtype=self.dtype,
            shared=self.shared,
            answered=None if matching is None else view.batch.answered[asked],
        )
        means = {"hard": hard / targets, "soft": soft / answered}
        return total / targets, {name: means[name] for name in self.parts}
