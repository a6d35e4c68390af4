"""Projections: linear maps that bring a student layer's features to its teacher layer's width."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdalign.alignment import ProjectionShape
from kdalign.architecture import Layer


class Projections(nn.Module):
    """One linear map per pair of layers whose widths differ; pairs of equal width pass unchanged.

    Each pair has weights of its own. They belong to training alone: they are optimised and checkpointed with the
    student and never exported in it.
    """

    def __init__(self, shapes: Sequence[ProjectionShape], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.ModuleDict(
                {
                    _key(shape.student, shape.teacher): nn.Linear(shape.student_width, shape.teacher_width, bias=False)
                    for shape in shapes
                }
            )

    def forward(
        self, hidden: Float[Tensor, "batch time width"], student: Layer, teacher: Layer
    ) -> Float[Tensor, "batch time teacher_width"]:
        """The student layer's features at the teacher layer's width."""
        key = _key(student, teacher)
        return self.maps[key](hidden) if key in self.maps else hidden


def _key(student: Layer, teacher: Layer) -> str:
    return f"{student.stack}_{student.number}_to_{teacher.stack}_{teacher.number}"
