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
from jaxtyping import Float
from torch import Tensor

from kdalign import losses
from kdalign.alignment import Plan, crossed
from kdalign.architecture import CROSS, Layer
from kdalign.batches import Batch
from kdalign.capture import Signals, Wanted, pooled
from kdalign.matching import Shared
from kdalign.recipe import Objective as Weights
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
    batch = view.batch
    theirs = batch.real if batch.taught is None else batch.taught["attention_mask"].bool()
    return pooled(view.student.features, batch.real), pooled(view.taught.features, theirs)


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


@dataclass(frozen=True)
class Breakdown:
    """A micro-batch's loss: its weighted total, and each term's unweighted share of the step's mean."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """Weighted terms by name, those of weight 0 left out; and a language model's vocabulary."""

    terms: Mapping[str, tuple[float, LossTerm]]
    vocabulary: Vocabulary | None = None

    def __call__(self, view: View, units: Mapping[Unit, float]) -> Breakdown:
        """The micro-batch's share of the step's loss.

        Args:
            view: both models' signals on the micro-batch.
            units: of the **whole optimizer step**, over micro-batches and ranks.
        """
        total = torch.zeros((), device=view.batch.counted.device)
        parts: dict[str, Tensor] = {}
        if self.vocabulary is not None:
            weighted, means = self.vocabulary(view, units)
            total = total + weighted
            parts |= means
        for name, (weight, term) in self.terms.items():
            mean = term(view) / (units[term.unit] or 1)
            parts[name] = mean.detach()
            total = total + weight * mean
        return Breakdown(total, parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Its parts, in the order of a breakdown."""
        return (*(self.vocabulary.parts if self.vocabulary is not None else ()), *self.terms)

    @property
    def needs(self) -> frozenset[Signal]:
        """All signals that its terms look at."""
        return frozenset().union(*(term.needs for _, term in self.terms.values()))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term but the hard labels is in it."""
        return any(name != "hard" for name in self.names)

    @property
    def uses_hidden(self) -> bool:
        """Whether features are compared, so that projections are needed."""
        return Signal.HIDDEN in self.needs

    @property
    def compared_maps(self) -> tuple[tuple[Layer, Layer], ...]:
        """The (student layer, teacher layer) whose attention maps are compared."""
        terms = [term for _, term in self.terms.values() if isinstance(term, AttentionMaps)]
        return tuple(pair[:2] for term in terms for pair in term.place.pairs)

    def wanted(self, layers: Sequence[Layer]) -> Wanted:
        """What must be captured of a model at these layers."""
        crossing = [Layer(CROSS, layer.number) for layer in layers if layer.stack == "decoder"]
        return Wanted(
            hidden=frozenset(layers if Signal.HIDDEN in self.needs else ()),
            attention=frozenset(layers if Signal.ATTENTION in self.needs else ())
            | frozenset(crossing if Signal.CROSS in self.needs else ()),
            relations=frozenset(layers if Signal.RELATIONS in self.needs else ()),
            embeddings=frozenset(layer.stack for layer in layers if Signal.EMBEDDINGS in self.needs),
        )


def build_objective(weights: Weights, plan: Plan | None, regression: bool) -> Objective:
    """The objective of a classification or regression task."""
    answers: dict[str, tuple[float, LossTerm]] = {
        "hard": (weights.hard, HardLabels(regression)),
        "soft": (weights.alpha, SoftTargets(weights.temperature, regression)),
    }
    return Objective(_weighted(answers | _alignment(weights, plan)))


def build_language_objective(
    weights: Weights, plan: Plan | None, dtype: torch.dtype | None = None, shared: Shared | None = None
) -> Objective:
    """The objective of a language-modelling task.

    Args:
        weights: of its terms.
        plan: what aligns layers; None without a teacher.
        dtype: the precision of products with the vocabulary.
        shared: what the vocabularies share, where they are two.
    """
    vocabulary = Vocabulary(weights.hard, weights.alpha, weights.divergence, weights.temperature, dtype, shared)
    return Objective(_weighted(_alignment(weights, plan)), vocabulary if vocabulary.parts else None)


def build_embedding_objective(weights: Weights, plan: Plan) -> Objective:
    """The objective of a task of embeddings; where widths differ, only similarities can be compared."""
    same = plan.teacher.stacks[-1].width == plan.student.stacks[-1].width
    answers: dict[str, tuple[float, LossTerm]] = {
        "embedding": (weights.alpha if same else 0.0, Embedding()),
        "similarity": (weights.alpha, Similarity()),
    }
    return Objective(_weighted(answers | _alignment(weights, plan)))


def _alignment(weights: Weights, plan: Plan | None) -> dict[str, tuple[float, LossTerm]]:
    """The terms that compare layers, stack by stack; a stack's name stands in theirs where there are several."""
    terms: dict[str, tuple[float, LossTerm]] = {}
    for layer_map in plan.maps if plan is not None else ():
        assert plan is not None
        pairs = plan.pairs_of(layer_map)
        target = plan.student.reads_target(layer_map.student_stack)
        place = Place(pairs, target, looks_back=target or plan.student.family == "causal")
        variances = {theirs: plan.variance(theirs) for _, theirs, _ in pairs} if weights.gamma > 0 else {}
        ending = f" {layer_map.student_stack}" if len(plan.maps) > 1 else ""
        terms[f"cosine{ending}"] = (weights.beta, HiddenCosine(place))
        terms[f"euclid{ending}"] = (weights.gamma, HiddenEuclid(place, variances))
        mean = plan.heads == "mean"
        terms[f"attention{ending}"] = (weights.delta, AttentionMaps(place, mean))
        if place.reads_target:
            crossing = tuple((crossed(ours), crossed(theirs), share) for ours, theirs, share in pairs)
            across = Place(crossing, reads_target=True)
            terms["attention cross"] = (weights.delta, AttentionMaps(across, mean, frozenset({Signal.CROSS})))
        stacks = layer_map.student_stack, layer_map.teacher_stack
        terms[f"embeddings{ending}"] = (weights.embeddings, EmbeddingsCosine(place, stacks))
        parts = ("values",) if plan.relations == "values" else ("queries", "keys", "values")
        terms[f"relations{ending}"] = (weights.relations, Relations(place, plan.relation_heads, parts))
    return terms


def _weighted(terms: Mapping[str, tuple[float, LossTerm]]) -> dict[str, tuple[float, LossTerm]]:
    return {name: (weight, term) for name, (weight, term) in terms.items() if weight > 0}


def count_units(batches: Sequence[Batch]) -> dict[Unit, float]:
    """The units of these micro-batches, from their masks alone."""
    return {
        Unit.EXAMPLE: float(sum(int(batch.counted.sum()) for batch in batches)),
        Unit.TOKEN: float(sum(int(batch.tokens.sum()) for batch in batches)),
        Unit.COMPARED: float(sum(int(batch.compared.sum()) for batch in batches)),
        Unit.TARGET: float(sum(int(batch.predicted.sum()) for batch in batches if batch.targets is not None)),
        Unit.ANSWERED: float(sum(int(batch.answered.sum()) for batch in batches if batch.targets is not None)),
        Unit.GROUP: float(sum(int(batch.counted.sum()) >= losses.LEAST_GROUP for batch in batches)),
    }
