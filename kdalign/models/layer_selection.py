"""Choose layers to keep or to align by depth alone: uniform, first, last, skip, spread."""

import re
from collections.abc import Callable, Mapping, Sequence

from kdalign.errors import UsageError, did_you_mean


def _uniform(student: int, teacher: int) -> list[int]:
    return [(2 * (i + 1) * teacher + student) // (2 * student) - 1 for i in range(student)]


def _first(student: int, teacher: int) -> list[int]:
    return list(range(student))


def _last(student: int, teacher: int) -> list[int]:
    return [teacher - student + i for i in range(student)]


def _skip(student: int, teacher: int) -> list[int]:
    return [i * teacher // student for i in range(student)]


def _spread(student: int, teacher: int) -> list[int]:
    if student == 1:
        return [teacher - 1]
    return [(2 * i * (teacher - 1) + student - 1) // (2 * (student - 1)) for i in range(student)]


STRATEGIES: Mapping[str, Callable[[int, int], list[int]]] = {
    "uniform": _uniform,
    "first": _first,
    "last": _last,
    "skip": _skip,
    "spread": _spread,
}
"""Fixed choices of teacher layers, (student layers, teacher layers) to one teacher layer each.

Where a choice falls between two layers it is rounded as floor(x + 1/2). From 6 to 3 layers: uniform 1 3 5,
first 0 1 2, last 3 4 5, skip 0 2 4, spread 0 3 5.
"""


def choose_layers(choice: str, student: int, teacher: int, others: Sequence[str] = ()) -> tuple[int, ...]:
    """Choose a teacher layer for each student layer.

    Args:
        choice: a strategy's name, or the layers themselves, such as ``1 3 5``.
        student: number of student layers.
        teacher: number of teacher layers.
        others: other words that the caller accepts, for the error line.

    Raises:
        UsageError: unknown strategy, wrong number of layers, or a layer that the teacher does not have.
    """
    if student > teacher:
        raise UsageError(f"a student of {student} layers has more than its teacher's {teacher}")
    if choice in STRATEGIES:
        return tuple(STRATEGIES[choice](student, teacher))
    if not re.fullmatch(r"[0-9]{1,9}([ ,]+[0-9]{1,9})*", choice.strip()):
        raise UsageError(
            f"unknown choice of layers {choice!r}{did_you_mean(choice, [*STRATEGIES, *others])} "
            f"(accepted: {', '.join([*STRATEGIES, *others])}, or numbers such as '1 3 5')"
        )
    layers = tuple(int(word) for word in re.split(r"[ ,]+", choice.strip()))
    if len(layers) != student:
        raise UsageError(f"layers {choice!r}: {len(layers)} are named for a student of {student} layers")
    for layer in layers:
        if layer >= teacher:
            raise UsageError(f"layers {choice!r}: the teacher has layers 0 to {teacher - 1}, not {layer}")
    return layers


def layers_text(layers: Mapping[str, Sequence[int]]) -> str:
    """Format the layers of each stack: ``1 3 5``, or ``encoder 1 3, decoder 1 3``."""
    each = {name: " ".join(map(str, numbers)) for name, numbers in layers.items()}
    return ", ".join(f"{name} {numbers}" if len(each) > 1 else numbers for name, numbers in each.items())
