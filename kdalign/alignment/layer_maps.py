"""Which teacher layer for which student layer: fixed choices, and choices by measured similarity."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdalign.alignment.similarity import monotone_path, transport
from kdalign.errors import UsageError, did_you_mean
from kdalign.registry import names_code, resolve


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


Alike = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""CKA of every student layer (rows) with every teacher layer (columns)."""
Flows = list[tuple[int, int, float]]
"""(student layer, teacher layer, weight on any positive scale)."""


def _path(alike: Alike) -> Flows:
    return [(ours, theirs, 1.0) for ours, theirs in enumerate(monotone_path(alike))]


def _transported(alike: Alike) -> Flows:
    flow = transport(1 - alike)
    return [(int(ours), int(theirs), float(flow[ours, theirs])) for ours, theirs in np.argwhere(flow > 0)]


MEASURED: Mapping[str, Callable[[Alike], Flows]] = {"cka": _path, "emd": _transported}
"""Maps chosen by how alike layers are: the best path that never goes back, and the earth mover's flow."""


TOP = "top"
"""The last layer with the last layer alone."""
LEARNED = "learned"
"""Every student layer with all teacher layers, to which it attends (ALP-KD, Passban et al. 2021, arXiv:2012.14022)."""


def measured_strategy(choice: str) -> Callable[[Alike], Flows]:
    """The function behind a measured map: a shipped one, ``package.module:name`` or ``file.py:name``.

    Raises:
        UsageError: there is none.
    """
    found = resolve(choice, MEASURED, "map")
    if not callable(found):
        raise UsageError(f"map {choice!r} is not a function of similarities (student layers, teacher layers)")
    return found


def needs_measuring(choice: str) -> bool:
    """Whether a map can only be chosen once both models have read some text."""
    return choice in MEASURED or names_code(choice)


def choose_layers(choice: str, student: int, teacher: int, others: Sequence[str] = ()) -> tuple[int, ...]:
    """For each student layer, a teacher layer.

    Args:
        choice: a strategy's name, or the layers themselves, such as ``1 3 5``.
        student: number of student layers.
        teacher: number of teacher layers.
        others: further words that the caller takes, for the error line.

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
