"""Projections: what brings a student layer's features and attention maps to its teacher layer's width and heads."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdalign.alignment import HeadMix, ProjectionShape
from kdalign.architecture import Layer


class Projections(nn.Module):
    """What brings a student's signals to its teacher's shapes, pair by pair; pairs of equal shape pass unchanged.

    One linear map for features of each pair of layers whose widths differ, and for attention maps of each pair whose
    heads differ, learned shares that start equal. They belong to training alone: they are optimised and checkpointed
    with the student and never exported in it.
    """

    def __init__(self, shapes: Sequence[ProjectionShape], seed: int, mixes: Sequence[HeadMix] = ()) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.ModuleDict(
                {
                    _key(shape.student, shape.teacher): nn.Linear(shape.student_width, shape.teacher_width, bias=False)
                    for shape in shapes
                }
            )
        self.mixes = nn.ParameterDict(
            {_key(mix.student, mix.teacher): torch.zeros(mix.teacher_heads, mix.student_heads) for mix in mixes}
        )

    def forward(
        self, hidden: Float[Tensor, "batch time width"], student: Layer, teacher: Layer
    ) -> Float[Tensor, "batch time teacher_width"]:
        """The student layer's features at the teacher layer's width."""
        key = _key(student, teacher)
        return self.maps[key](hidden) if key in self.maps else hidden

    def mixed(
        self, attention: Float[Tensor, "batch heads time keys"], student: Layer, teacher: Layer
    ) -> Float[Tensor, "batch teacher_heads time keys"]:
        """The student layer's maps as many as the teacher layer has: each a mean of its heads, by learned shares."""
        key = _key(student, teacher)
        if key not in self.mixes:
            return attention
        return torch.einsum("ts,bsij->btij", self.mixes[key].softmax(dim=-1), attention)


def _key(student: Layer, teacher: Layer) -> str:
    return f"{student.stack}_{student.number}_to_{teacher.stack}_{teacher.number}"
