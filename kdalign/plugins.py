"""Stable names for losses and metrics of your own.

A loss is named by its file, ``--term own.py:SureGap=0.5``, or in a recipe under ``objective.terms``. It says which
signals it needs and what its sum is divided by, and returns a **sum** over the units of a micro-batch; kdalign divides
once, by the units of the whole optimizer step::

    from kdalign.plugins import Signal, Unit

    class SureGap:
        needs, unit = frozenset({Signal.LOGITS}), Unit.EXAMPLE

        def __init__(self, context, power=2.0):  # a TermContext, and the options of the recipe
            self.power = power

        def __call__(self, view):  # a TermInputs
            student, teacher = (each.logits.softmax(-1).amax(-1) for each in (view.student, view.teacher))
            return ((student - teacher).abs() ** self.power)[view.batch.counted].sum()

A metric is named by ``--metrics own.py:length`` or in a task file: a ``Metric`` of classes or scores, a ``TextMetric``,
or the mean of a function of each text and its references::

    from kdalign.plugins import mean_metric

    length = mean_metric("length", lambda prediction, references: len(prediction.split()), "words")

Names are loaded on first use, so that a metric imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdalign.metrics.classification import Metric as Metric
    from kdalign.metrics.counts import Counts as Counts
    from kdalign.metrics.text import TextMetric as TextMetric
    from kdalign.metrics.text import mean_metric as mean_metric
    from kdalign.objective.terms import LayerPairs as LayerPairs
    from kdalign.objective.terms import LayerTerm as LayerTerm
    from kdalign.objective.terms import LossTerm as LossTerm
    from kdalign.objective.terms import Signal as Signal
    from kdalign.objective.terms import TermInputs as TermInputs
    from kdalign.objective.terms import Unit as Unit
    from kdalign.objective.terms.registry import TermContext as TermContext

_HOMES = {
    "Counts": "metrics.counts",
    "LayerPairs": "objective.terms",
    "LayerTerm": "objective.terms",
    "LossTerm": "objective.terms",
    "Metric": "metrics.classification",
    "Signal": "objective.terms",
    "TermContext": "objective.terms.registry",
    "TermInputs": "objective.terms",
    "TextMetric": "metrics.text",
    "Unit": "objective.terms",
    "mean_metric": "metrics.text",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdalign.plugins' has no attribute {name!r}")
    return getattr(import_module(f"kdalign.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
