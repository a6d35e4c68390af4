"""Several teachers as one: their answers mixed, or one teacher for each row; their layers each under its own name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdalign.data.batches import Batch
from kdalign.data.tokenized_split import IGNORED
from kdalign.models.architecture import Layer, split_stack, stack_of_teacher
from kdalign.models.capture import Activations, CaptureSpec
from kdalign.models.mixtures import ClassMixture, MixedTokens, Mixing, RoutedTokens
from kdalign.teachers.base import Teacher, TermRequest

_OF_LAYERS = ("hidden", "attention", "queries", "keys", "values")
"""Activations of a teacher by its layers."""


@dataclass(frozen=True)
class SeveralTeachers:
    """Teachers whose layers are named by ``stack_of_teacher``; those that predict tokens have one tokenizer.

    A batch that says who teaches each row (``Batch.taught_by``) is divided among them, and none reads the others' rows;
    of any other, all teachers read all rows, and their answers are mixed.

    Attributes:
        teachers: two or more.
        mixing: weights of their answers.
    """

    teachers: tuple[Teacher, ...]
    mixing: Mixing

    def __call__(self, batch: Batch, wanted: CaptureSpec) -> Activations:
        """Give the answers of all teachers as one, and the activations of each one's layers."""
        if batch.taught_by is not None:
            return self._each_its_rows(batch, batch.taught_by, wanted)
        said = [teacher(batch.read_by(number), _own(wanted, number)) for number, teacher in enumerate(self.teachers)]
        both, first = _joined(said, batch), said[0]
        if not wanted.answers:
            return both
        if first.tokens is not None:
            assert batch.targets is not None, "a language-modelling task has targets"
            parts = tuple(each.tokens for each in said if each.tokens is not None)
            # Targets are the student's entries, which say nothing of a teacher with another tokenizer.
            known = batch.targets if batch.matching is None else torch.full_like(batch.targets, IGNORED)
            both.tokens = MixedTokens(parts, self.mixing, known)
        elif first.logits.numel():
            classes = batch.labels is not None and not batch.labels.is_floating_point()
            logits = tuple(each.logits for each in said)
            mixture = ClassMixture(logits, self.mixing, batch.labels if classes else None)
            both.logits, both.mixture = mixture.mean, mixture if first.logits.size(1) > 1 else None
        else:
            both.embeddings_of = tuple(zip(self.mixing.shares, (each.features for each in said), strict=True))
        return both

    def _each_its_rows(self, batch: Batch, taught_by: Tensor, wanted: CaptureSpec) -> Activations:
        """Let each teacher read its own rows; the activations of its layers are 0 in all others."""
        numbers = range(len(self.teachers))
        rows = [(taught_by == number).nonzero().squeeze(1) for number in numbers]
        said = [
            teacher((batch.select(own) if len(own) else _stand_in(batch)).read_by(number), _own(wanted, number))
            for number, teacher, own in zip(numbers, self.teachers, rows, strict=True)
        ]
        both = _joined([_spread(each, own, len(taught_by)) for each, own in zip(said, rows, strict=True)], batch)
        if not wanted.answers:
            return both
        if said[0].tokens is not None:
            assert batch.targets is not None, "a language-modelling task has targets"
            parts = tuple(each.tokens for each in said if each.tokens is not None)
            both.tokens = RoutedTokens(parts, taught_by[:, None].expand_as(batch.targets))
        else:
            logits = [_among(each.logits.float(), own, len(taught_by)) for each, own in zip(said, rows, strict=True)]
            both.logits = torch.stack(logits).sum(dim=0)
        return both

    def refusal(self, request: TermRequest) -> str | None:
        """Return the first teacher's reason for which it cannot give what a term asks for."""
        for number, teacher in enumerate(self.teachers):
            reason = teacher.refusal(replace(request, wanted=_own(request.wanted, number)))
            if reason is not None:
                return f"{reason} (teacher {number + 1})"
        return None


def _own(wanted: CaptureSpec, number: int) -> CaptureSpec:
    """Return the part of what is wanted that is of one teacher, with the names of its own."""

    def layers(of_all: frozenset[Layer]) -> frozenset[Layer]:
        return frozenset(
            Layer(stack, layer.number) for layer in of_all for own, stack in [split_stack(layer.stack)] if own == number
        )

    stacks = (split_stack(stack) for stack in wanted.embeddings)
    return CaptureSpec(
        hidden=layers(wanted.hidden),
        attention=layers(wanted.attention),
        embeddings=frozenset(stack for own, stack in stacks if own == number),
        relations=layers(wanted.relations),
        answers=wanted.answers,
    )


def _joined(said: Sequence[Activations], batch: Batch) -> Activations:
    """Join the activations of all teachers' layers, each under its teacher's name."""
    both = Activations(matchings=tuple(batch.read_by(number).matching for number in range(len(said))))
    for number, each in enumerate(said):
        for name in _OF_LAYERS:
            kept = vars(each)[name].items()
            vars(both)[name].update(
                {Layer(stack_of_teacher(number, layer.stack), layer.number): tensor for layer, tensor in kept}
            )
        both.embeddings |= {stack_of_teacher(number, stack): kept for stack, kept in each.embeddings.items()}
    return both


def _spread(said: Activations, rows: Tensor, size: int) -> Activations:
    """Put the activations of the layers of some rows among zeros for all others."""
    spread = Activations()
    for name in (*_OF_LAYERS, "embeddings"):
        vars(spread)[name].update({key: _among(kept, rows, size) for key, kept in vars(said)[name].items()})
    return spread


def _among(kept: Tensor, rows: Tensor, size: int) -> Tensor:
    """Put rows at their numbers among zeros."""
    whole = kept.new_zeros(size, *kept.shape[1:])
    whole[rows] = kept[: len(rows)]
    return whole


def _stand_in(batch: Batch) -> Batch:
    """Make a row of nothing but the first entry, for the shapes of what a teacher without rows would give."""
    row = batch.select(torch.zeros(1, dtype=torch.long, device=batch.counted.device))
    inputs = {name: torch.zeros_like(each) if name.endswith("input_ids") else each for name, each in row.inputs.items()}
    other = None if row.other_inputs is None else _zeroed(row.other_inputs)
    readings = tuple(each if each is None else replace(each, inputs=_zeroed(each.inputs)) for each in row.readings)
    return replace(row, inputs=inputs, other_inputs=other, readings=readings)


def _zeroed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs | {"input_ids": torch.zeros_like(inputs["input_ids"])}
