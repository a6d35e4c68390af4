"""Terms that compare a student's layers with its teacher's, position by position."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kdalign import losses
from kdalign.architecture import Layer
from kdalign.terms.view import Place, Signal, Unit, View


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


