"""Architectures by their sizes alone."""

from kdalign.alignment.plan import Plan
from kdalign.models.architecture import Architecture, Stack


def shape(layers: int, width: int = 32, heads: int = 4, model_type: str = "bert") -> Architecture:
    stack = Stack("encoder", layers, width, heads, heads, width // heads, 4 * width)
    return Architecture(model_type, "masked", (stack,), 100, 1000, True)


def pairs_of(plan: Plan) -> list[tuple[int, int]]:
    return [(student.number, teacher.number) for student, teacher, _ in plan.pairs]
