"""The objective: a weighted sum of terms, each a sum over units, divided once by the units of the whole step.

L = hard CE + alpha L_soft + beta L_feat + gamma L_dist + delta L_attn (arXiv:2412.19449).

Because every term is a sum and the divisor covers all micro-batches and ranks, the gradient does not depend on how
a step is split, and padding changes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdalign.alignment.plan import cross_attention_layer
from kdalign.errors import UsageError
from kdalign.models.architecture import Layer, split_stack
from kdalign.models.capture import CaptureSpec
from kdalign.objective.terms import (
    AttentionMaps,
    Contrastive,
    FrameTargets,
    LayerTerm,
    LayerWeights,
    LMHeadLoss,
    LossTerm,
    MaskedTokens,
    PairSimilarity,
    Signal,
    SoftTargets,
    TermInputs,
    Unit,
)
from kdalign.objective.terms.logits import DecoupledKD
from kdalign.objective.terms.relational import CorrelationDistance
from kdalign.recipe.schedules import Schedule
from kdalign.recipe.terms import KEYS_OF_TERMS, TEACHERLESS_KEYS, TERM_FACTS
from kdalign.teachers.base import TermRequest


@dataclass(frozen=True)
class Breakdown:
    """Loss of a micro-batch: the weighted total, and each term's unweighted share of the step's mean."""

    total: Tensor
    parts: Mapping[str, Tensor]


T = TypeVar("T")
SOFTENED = SoftTargets | FrameTargets | PairSimilarity | DecoupledKD | CorrelationDistance
"""Terms on softened distributions over classes, or over the entries of a frame."""


@dataclass(frozen=True)
class Objective:
    """Weighted sum of loss terms.

    Attributes:
        terms: weight and term by name, without weights of 0.
        vocabulary: loss of a language model's tokens.
        moving: schedules of weights and of the temperature, by the recipe's key. A weight that rises from 0 stands in
            ``terms`` with its final value.
        own_temperature: further terms with a temperature of their own, which no schedule changes.
        shares: shares of the scheduled weight that terms of one of several teachers have, by name; 1 if left out.
    """

    terms: Mapping[str, tuple[float, LossTerm]]
    vocabulary: LMHeadLoss | None = None
    moving: Mapping[str, Schedule] = field(default_factory=dict)
    own_temperature: frozenset[str] = frozenset()
    shares: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, view: TermInputs, units: Mapping[Unit, float]) -> Breakdown:
        """Compute the micro-batch's share of the step's loss.

        Args:
            view: both models' activations on the micro-batch.
            units: numbers of units of the **whole optimizer step**, over micro-batches and ranks.
        """
        total = torch.zeros((), device=view.batch.counted.device)
        parts: dict[str, Tensor] = {}
        if self.vocabulary is not None:
            weighted, means = self.vocabulary(view, units)
            total = total + weighted
            parts |= means
        for name, (weight, term) in self.terms.items():
            mean = _check_sum(name, term(view)) / (units[term.unit] or 1)
            parts[name] = mean.detach()
            total = total + weight * mean
        return Breakdown(total, parts)

    def each(self, view: TermInputs, units: Mapping[Unit, float]) -> Iterator[tuple[str, Tensor]]:
        """Compute the weighted parts one by one, each with its own graph, in the order of ``names``."""
        if self.vocabulary is not None:
            for name in self.vocabulary.parts:
                alone = replace(self.vocabulary, soft=0.0) if name == "hard" else replace(self.vocabulary, hard=0.0)
                yield name, alone(view, units)[0]
        for name, (weight, term) in self.terms.items():
            yield name, weight * term(view) / (units[term.unit] or 1)

    def with_masked_lm(self, weight: float, term: MaskedTokens | None) -> "Objective":
        """Add masked-token prediction with this weight."""
        return self if term is None or weight == 0 else replace(self, terms={**self.terms, "masked-lm": (weight, term)})

    def on_samples(self, divergence: str | None) -> "Objective":
        """The objective of texts that the student wrote, which have no labels.

        Args:
            divergence: divergence from the teacher's tokens, a key of ``losses.DIVERGENCES``; the same if None.
        """
        words = self.vocabulary
        if words is None:
            return self
        return replace(self, vocabulary=replace(words, hard=0.0, divergence=divergence or words.divergence))

    def scaled(self, factors: Mapping[str, float]) -> "Objective":
        """Multiply the weights of terms."""
        terms = {name: (weight * factors.get(name, 1.0), term) for name, (weight, term) in self.terms.items()}
        words = self.vocabulary
        if words is not None:
            words = replace(
                words, hard=words.hard * factors.get("hard", 1.0), soft=words.soft * factors.get("soft", 1.0)
            )
        return replace(self, terms=terms, vocabulary=words)

    def at(self, place: float) -> "Objective":
        """Apply the schedules at a point of the run, from 0 for the first step to 1 for the last."""
        values = {key: each.at(place) for key, each in self.moving.items()}
        keys = {name: self.scheduled_by(name) for name in self.names}
        factors = {
            name: values[key] * self.shares.get(name, 1.0) / self.weights[name]
            for name, key in keys.items()
            if key is not None
        }
        objective = self.scaled(factors) if factors else self
        return objective._with_temperature(values["temperature"]) if "temperature" in values else objective

    @property
    def temperature(self) -> float | None:
        """Current temperature if it is scheduled, otherwise None."""
        return self.softened_at if "temperature" in self.moving else None

    @property
    def softened_at(self) -> float | None:
        """Temperature of soft targets; None without any."""
        softened = [self.vocabulary.temperature] if self.vocabulary is not None else []
        softened += [self._softened_terms[name].temperature for name in self._softened_terms]
        return softened[0] if softened else None

    @property
    def _softened_terms(self) -> dict[str, SOFTENED]:
        """Terms with the recipe's temperature."""
        named = {name: term for name, (_, term) in self.terms.items() if name not in self.own_temperature}
        return {name: term for name, term in named.items() if isinstance(term, SOFTENED)}

    def scheduled_by(self, name: str) -> str | None:
        """Key in ``moving`` of a part's weight; None if it is not scheduled."""
        key = KEYS_OF_TERMS.get(name.partition(" ")[0])
        if key is not None:
            return key if key in self.moving else None
        return next((key for key in self.moving if name == key or name.startswith(f"{key} ")), None)

    def _with_temperature(self, temperature: float) -> "Objective":
        softened = {name: replace(term, temperature=temperature) for name, term in self._softened_terms.items()}
        terms = {name: (weight, softened.get(name, term)) for name, (weight, term) in self.terms.items()}
        words = self.vocabulary
        return replace(
            self, terms=terms, vocabulary=words if words is None else replace(words, temperature=temperature)
        )

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the parts by name."""
        words = self.vocabulary
        of_tokens = {} if words is None else {name: getattr(words, name) for name in words.parts}
        return of_tokens | {name: weight for name, (weight, _) in self.terms.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, in the order of a breakdown."""
        return (*(self.vocabulary.parts if self.vocabulary is not None else ()), *self.terms)

    def present_terms(self, parts: Mapping[str, T], units: Mapping[Unit, float]) -> dict[str, T]:
        """Select the parts that a step had units of: without a labelled row, there is no mean over labels."""
        absent = {name for name, (_, term) in self.terms.items() if not units[term.unit]}
        return {name: value for name, value in parts.items() if name not in absent}

    @property
    def needs(self) -> frozenset[Signal]:
        """All signals that the terms need."""
        words = self.vocabulary.needs if self.vocabulary is not None else frozenset[Signal]()
        return words.union(*(term.needs for _, term in self.terms.values()))

    def requests(self, layers: Sequence[Layer], samples: bool = False) -> list[TermRequest]:
        """Return the request of each term that compares with the teacher.

        Args:
            layers: the teacher's layers that are compared.
            samples: true if it also runs on texts that the student writes.
        """
        terms: dict[str, LossTerm | LMHeadLoss] = {name: term for name, (_, term) in self.terms.items()}
        if self.vocabulary is not None:
            terms |= {name: self.vocabulary for name in self.vocabulary.parts}
        return [
            TermRequest(
                name,
                term.needs,
                capture_spec(term.needs, layers, of_teacher=True),
                _temperature(term),
                scheduled="temperature" in self.moving and name not in self.own_temperature,
                samples=samples,
            )
            for name, term in terms.items()
            if KEYS_OF_TERMS.get(name.partition(" ")[0]) not in TEACHERLESS_KEYS
        ]

    @property
    def needs_teacher(self) -> bool:
        """True if any term needs the teacher."""
        return any(KEYS_OF_TERMS.get(name) not in TEACHERLESS_KEYS for name in self.names)

    @property
    def compares_answers(self) -> bool:
        """True if a term reads the teacher's logits, tokens or last features, as a term of the user's own may."""
        facts = [TERM_FACTS.get(name.partition(" ")[0]) for name in self.names]
        return any(each is None or each.compares == "answers" for each in facts)

    @property
    def uses_hidden(self) -> bool:
        """True if features are compared, so that projections are needed."""
        return Signal.HIDDEN in self.needs

    @property
    def compared_maps(self) -> tuple[tuple[Layer, Layer], ...]:
        """Pairs (student layer, teacher layer) whose attention maps are compared."""
        terms = [term for _, term in self.terms.values() if isinstance(term, AttentionMaps)]
        return tuple(dict.fromkeys(pair[:2] for term in terms for pair in term.place.pairs))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Terms and layer weights with parameters or state, by name."""
        modules = {name: term for name, (_, term) in self.terms.items() if isinstance(term, nn.Module)}
        return modules | {f"{name} weights": weights for name, weights in self.layer_weights.items()}

    @property
    def layer_weights(self) -> dict[str, LayerWeights]:
        """lambda_l of terms with layer weights that change during training, by term."""
        places = {name: term.place for name, (_, term) in self.terms.items() if isinstance(term, LayerTerm)}
        return {name: place.changing for name, place in places.items() if place.changing is not None}

    def remember(self, units: Mapping[Unit, float] | None) -> None:
        """Update queues and layer weights with the forward passes since the last call.

        Args:
            units: numbers of units of the whole optimizer step; None for a step that is not taken, which is forgotten.
        """
        for _, term in self.terms.values():
            if isinstance(term, Contrastive):
                term.remember(kept=units is not None)
        for name, weights in self.layer_weights.items():
            weights.remember(units[self.terms[name][1].unit] if units is not None else 0.0)

    def wanted(self, layers: Sequence[Layer], of_teacher: bool = False) -> CaptureSpec:
        """Return the activations to capture of a model at these layers."""
        return replace(capture_spec(self.needs, layers, of_teacher), answers=not of_teacher or self.compares_answers)


def capture_spec(needs: frozenset[Signal], layers: Sequence[Layer], of_teacher: bool) -> CaptureSpec:
    """Return the activations to capture of a model at these layers for these signals."""
    attention = needs & ({Signal.ATTENTION, Signal.TEACHER_ATTENTION} if of_teacher else {Signal.ATTENTION})
    crossing = [cross_attention_layer(layer) for layer in layers if split_stack(layer.stack)[1] == "decoder"]
    return CaptureSpec(
        hidden=frozenset(layers if needs & {Signal.HIDDEN, Signal.LAYERS} else ()),
        attention=frozenset(layers if attention else ()) | frozenset(crossing if Signal.CROSS in needs else ()),
        relations=frozenset(layers if Signal.RELATIONS in needs else ()),
        embeddings=frozenset(layer.stack for layer in layers if Signal.EMBEDDINGS in needs),
    )


def _temperature(term: LossTerm | LMHeadLoss) -> float | None:
    """Temperature of a term's distributions; None if it compares none."""
    softens = Signal.TOKENS in term.needs or isinstance(term, SOFTENED)
    return float(vars(term)["temperature"]) if softens else None


def _check_sum(name: str, found: object) -> Tensor:
    """Check the value of a term, which may be a user's own."""
    if not isinstance(found, Tensor) or found.ndim:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise UsageError(f"term {name!r} gives {what}; a term gives one number in a tensor, the sum over its units")
    return found
