"""Terms that compare layers position by position: features, attention maps and relations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kdalign.models.architecture import Layer
from kdalign.models.capture import Signal
from kdalign.objective import losses
from kdalign.objective.terms.base import LayerPairs, TermInputs, Unit


@dataclass(frozen=True)
class _StackTerm:
    """A term on one stack's layers, summed over positions by default."""

    place: LayerPairs

    @property
    def unit(self) -> Unit:
        """Positions of the stack."""
        return self.place.unit

    def _over_layers(self, view: TermInputs, distance: Callable[[losses.PairDistances, Layer], Tensor]) -> Tensor:
        """Sum a distance of features over pairs, weighted by lambda_l."""
        return self.place.over_layers(
            [distance(view.apart(ours, theirs), theirs) for ours, theirs, _ in self.place.pairs]
        )


@dataclass(frozen=True)
class HiddenCosine(_StackTerm):
    """Cosine distance of features, weighted over layers by lambda_l (L_feat); each position in 0..2."""

    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})

    def __call__(self, view: TermInputs) -> Tensor:
        """The sum over positions of the weighted distances."""
        mask = self.place.mask(view.batch)
        return self._over_layers(view, lambda features, _: losses.cosine_distance(features, mask))


@dataclass(frozen=True)
class EmbeddingsCosine(_StackTerm):
    """Cosine distance of the inputs of a stack's first layer, for models of equal width."""

    stacks: tuple[str, str]
    needs: frozenset[Signal] = frozenset({Signal.EMBEDDINGS})

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over positions, each in 0..2."""
        ours, theirs = self.stacks
        mask = self.place.mask(view.batch)
        features = losses.PairDistances.of(view.student.embeddings[ours], view.teacher.embeddings[theirs])
        return losses.cosine_distance(features, mask)


@dataclass(frozen=True)
class HiddenMSE(_StackTerm):
    """Squared distance of features in units of the teacher's variance, weighted over layers by lambda_l (L_dist).

    1 per position for a student that gives the teacher's mean. ``variances`` are the teacher layers'.
    """

    variances: Mapping[Layer, float]
    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})

    def __call__(self, view: TermInputs) -> Tensor:
        """The sum over positions of the weighted distances."""
        mask = self.place.mask(view.batch)
        return self._over_layers(
            view, lambda features, layer: losses.scaled_euclid(features, mask, self.variances[layer])
        )


@dataclass(frozen=True)
class RelativeMSE(_StackTerm):
    """Squared distance of features in units of the teacher's squared length, weighted over layers by lambda_l."""

    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over positions; 1 each for a student that gives 0."""
        mask = self.place.mask(view.batch)
        return self._over_layers(view, lambda features, _: losses.relative_squared_error(features, mask))


@dataclass(frozen=True)
class PatientKD(_StackTerm):
    """Squared distance of a text's normalised summary features, weighted over layers by lambda_l (PKD)."""

    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})

    @property
    def unit(self) -> Unit:
        """Texts."""
        return Unit.EXAMPLE

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over texts, each in 0..4."""
        mask = self.place.mask(view.batch)
        ends = mask.flip(1) if self.place.looks_back else mask
        position = ends.int().argmax(dim=1)  # the first that counts, or the last
        position = mask.size(1) - 1 - position if self.place.looks_back else position
        at = torch.arange(len(mask), device=mask.device), position
        counted = self.place.texts(view.batch)
        signals, distances = view.student, []
        for ours, theirs, _ in self.place.pairs:
            student, teacher = signals.projected[ours, theirs][at], signals.targets[ours, theirs][at]
            distances.append(losses.patient_distance(student, teacher, counted))
        return self.place.over_layers(distances)


@dataclass(frozen=True)
class AttendedEuclid(_StackTerm):
    """``HiddenMSE`` with positions weighted by the teacher layer's attention to them."""

    variances: Mapping[Layer, float]
    needs: frozenset[Signal] = frozenset({Signal.HIDDEN, Signal.TEACHER_ATTENTION})

    def __call__(self, view: TermInputs) -> Tensor:
        """The sum over positions of the weighted distances."""
        mask, attention = self.place.mask(view.batch), view.teacher.attention
        return self._over_layers(
            view,
            lambda features, layer: losses.attended_euclid(features, attention[layer], mask, self.variances[layer]),
        )


@dataclass(frozen=True)
class AttentionMaps(_StackTerm):
    """Distance of attention maps, weighted over layers by lambda_l (L_attn); each query position in 0..2.

    Attributes:
        mean: compare the mean over heads.
        divergence: KL in nats instead of squared distance.
    """

    mean: bool = False
    needs: frozenset[Signal] = frozenset({Signal.ATTENTION})
    divergence: bool = False

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over query positions of the weighted distances."""
        mask = self.place.mask(view.batch)
        loss = losses.attention_divergence if self.divergence else losses.attention_distance
        distances = []
        for ours, theirs, _ in self.place.pairs:
            student, teacher = view.student.mixed[ours, theirs], view.student.maps[ours, theirs]
            if self.mean:
                student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
            distances.append(loss(student, teacher, mask))
        return self.place.over_layers(distances)


@dataclass(frozen=True)
class Relations(_StackTerm):
    """KL of relations between positions by values (or queries and keys, too), weighted over layers by lambda_l.

    Attributes:
        heads: number of relation heads.
        parts: compared parts of attention, among ``queries``, ``keys`` and ``values``; their mean counts.
    """

    heads: int
    parts: tuple[str, ...] = ("values",)
    needs: frozenset[Signal] = frozenset({Signal.RELATIONS})

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over positions of the weighted divergences, in nats."""
        mask, visible = self.place.mask(view.batch), self.place.visible(view.batch)
        distances = []
        for ours, theirs, _ in self.place.pairs:
            divergences = []
            for part in self.parts:
                student, teacher = (
                    relation_heads(kept, self.heads)
                    for kept in (vars(view.student)[part][ours], vars(view.teacher)[part][theirs])
                )
                divergences.append(losses.relation_divergence(student, teacher, visible, mask))
            distances.append(torch.stack(divergences).mean())
        return self.place.over_layers(distances)


def relation_heads(
    x: Float[Tensor, "batch heads time head_width"], number: int
) -> Float[Tensor, "batch number time width"]:
    """Concatenate heads and split them into another number, which divides the total width."""
    whole = x.transpose(1, 2).flatten(2)
    return whole.view(*whole.shape[:2], number, -1).transpose(1, 2)
