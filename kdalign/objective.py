"""The objective: a weighted sum of terms, each a sum over units, divided once by the units of the whole step.

L = hard CE + alpha L_soft + beta L_feat + gamma L_dist + delta L_attn (arXiv:2412.19449).

Because every term is a sum and the divisor covers all micro-batches and ranks, the gradient does not depend on how
a step is split, and padding changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from kdalign import losses
from kdalign.alignment import Plan
from kdalign.batches import Batch
from kdalign.capture import Signals, Wanted
from kdalign.recipe import Objective as Weights


class Signal(StrEnum):
    """What a term looks at."""

    LOGITS = "logits"
    HIDDEN = "hidden"
    ATTENTION = "attention"


class Unit(StrEnum):
    """What a term's sum is divided by."""

    EXAMPLE = "example"
    TOKEN = "token"


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
class HiddenCosine:
    """Direction of the features, weighted over layers by lambda_l (L_feat)."""

    plan: Plan
    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})
    unit: Unit = Unit.TOKEN

    def __call__(self, view: View) -> Tensor:
        """Each position lies in 0..2."""
        total = view.student.logits.new_zeros(())
        for student, teacher, weight in self.plan.pairs:
            ours, theirs = view.student.projected[student, teacher], view.taught.hidden[teacher]
            total = total + weight * losses.cosine_distance(ours, theirs, view.batch.tokens)
        return total


@dataclass(frozen=True)
class HiddenEuclid:
    """Distance of the features in the teacher's own spread, weighted over layers by lambda_l (L_dist)."""

    plan: Plan
    needs: frozenset[Signal] = frozenset({Signal.HIDDEN})
    unit: Unit = Unit.TOKEN

    def __call__(self, view: View) -> Tensor:
        """1 a position for a student that answers the teacher's mean."""
        total = view.student.logits.new_zeros(())
        for student, teacher, weight in self.plan.pairs:
            ours, theirs = view.student.projected[student, teacher], view.taught.hidden[teacher]
            variance = self.plan.variance(teacher)
            total = total + weight * losses.scaled_euclid(ours, theirs, view.batch.tokens, variance)
        return total


@dataclass(frozen=True)
class AttentionMaps:
    """Attention probabilities, weighted over layers by lambda_l (L_attn); both models have the same heads."""

    plan: Plan
    needs: frozenset[Signal] = frozenset({Signal.ATTENTION})
    unit: Unit = Unit.TOKEN

    def __call__(self, view: View) -> Tensor:
        """Each query position lies in 0..2."""
        total = view.student.logits.new_zeros(())
        for student, teacher, weight in self.plan.pairs:
            ours, theirs = view.student.attention[student], view.taught.attention[teacher]
            total = total + weight * losses.attention_distance(ours, theirs, view.batch.tokens)
        return total


@dataclass(frozen=True)
class Breakdown:
    """A micro-batch's loss: its weighted total, and each term's unweighted share of the step's mean."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """Weighted terms by name; terms of weight 0 are left out."""

    terms: Mapping[str, tuple[float, LossTerm]]

    def __call__(self, view: View, units: Mapping[Unit, float]) -> Breakdown:
        """The micro-batch's share of the step's loss.

        Args:
            view: both models' signals on the micro-batch.
            units: of the **whole optimizer step**, over micro-batches and ranks.
        """
        total = view.student.logits.new_zeros((), dtype=torch.float32)
        parts = {}
        for name, (weight, term) in self.terms.items():
            mean = term(view) / units[term.unit]
            parts[name] = mean.detach()
            total = total + weight * mean
        return Breakdown(total, parts)

    @property
    def needs(self) -> frozenset[Signal]:
        """All signals that its terms look at."""
        return frozenset().union(*(term.needs for _, term in self.terms.values()))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term but the hard labels is in it."""
        return any(name != "hard" for name in self.terms)

    @property
    def uses_hidden(self) -> bool:
        """Whether features are compared, so that projections are needed."""
        return Signal.HIDDEN in self.needs

    def wanted(self, layers: Sequence[int]) -> Wanted:
        """What must be captured of a model at these layers."""
        return Wanted(
            hidden=frozenset(layers if Signal.HIDDEN in self.needs else ()),
            attention=frozenset(layers if Signal.ATTENTION in self.needs else ()),
        )


def build_objective(weights: Weights, plan: Plan, regression: bool) -> Objective:
    """The objective of a recipe's weights over a plan."""
    terms: dict[str, tuple[float, LossTerm]] = {
        "hard": (weights.hard, HardLabels(regression)),
        "soft": (weights.alpha, SoftTargets(weights.temperature, regression)),
        "cosine": (weights.beta, HiddenCosine(plan)),
        "euclid": (weights.gamma, HiddenEuclid(plan)),
        "attention": (weights.delta, AttentionMaps(plan)),
    }
    return Objective({name: (weight, term) for name, (weight, term) in terms.items() if weight > 0})


def count_units(batches: Sequence[Batch]) -> dict[Unit, float]:
    """The units of these micro-batches, from their masks alone."""
    return {
        Unit.EXAMPLE: float(sum(int(batch.counted.sum()) for batch in batches)),
        Unit.TOKEN: float(sum(int(batch.tokens.sum()) for batch in batches)),
    }
