"""Layer maps chosen by measured similarity, and the names of special maps."""

from collections.abc import Callable, Mapping

import numpy as np

from kdalign.alignment.similarity import monotone_path, transport
from kdalign.errors import UsageError
from kdalign.registry import names_code, resolve

Alike = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""CKA of every student layer (rows) with every teacher layer (columns)."""
Flows = list[tuple[int, int, float]]
"""(student layer, teacher layer, weight on any positive scale)."""


def _path(alike: Alike) -> Flows:
    return [(ours, theirs, 1.0) for ours, theirs in enumerate(monotone_path(alike))]


def _transport_flows(alike: Alike) -> Flows:
    flow = transport(1 - alike)
    return [(int(ours), int(theirs), float(flow[ours, theirs])) for ours, theirs in np.argwhere(flow > 0)]


MEASURED: Mapping[str, Callable[[Alike], Flows]] = {"cka": _path, "emd": _transport_flows}
"""Maps by similarity: the best monotone path, and the earth mover's flow."""


TOP = "top"
"""Map of the last layers alone."""
LEARNED = "learned"
"""Map in which each student layer attends to all teacher layers (ALP-KD, Passban et al. 2021, arXiv:2012.14022)."""


def measured_strategy(choice: str) -> Callable[[Alike], Flows]:
    """Look up a measured map's function: a shipped one, ``package.module:name`` or ``file.py:name``.

    Raises:
        UsageError: there is none.
    """
    strategy = resolve(choice, MEASURED, "map")
    if not callable(strategy):
        raise UsageError(f"map {choice!r} is not a function of similarities (student layers, teacher layers)")
    return strategy


def is_measured_map(choice: str) -> bool:
    """Return whether a map depends on similarities, which are measured on texts."""
    return choice in MEASURED or names_code(choice)
