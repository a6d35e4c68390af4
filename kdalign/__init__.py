"""kdalign: distill a large Transformers model into a small one by multi-layer feature alignment.

Public names are loaded on first use, so that importing kdalign costs nothing.
"""

from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdalign.alignment.plan import LayerMap as LayerMap
    from kdalign.alignment.plan import Plan as Plan
    from kdalign.alignment.propose import PlanOptions as PlanOptions
    from kdalign.alignment.propose import propose as propose
    from kdalign.comparison.compare import compare as compare
    from kdalign.distillation.pipeline import distill as distill
    from kdalign.distillation.sequence_level.generate import generate as generate
    from kdalign.distillation.sequence_level.settings import GenerateSettings as GenerateSettings
    from kdalign.errors import (
        Interrupted as Interrupted,
    )
    from kdalign.errors import (
        KdalignError as KdalignError,
    )
    from kdalign.errors import (
        RunError as RunError,
    )
    from kdalign.errors import (
        UsageError as UsageError,
    )
    from kdalign.evaluation.evaluate import evaluate as evaluate
    from kdalign.evaluation.request import EvalRequest as EvalRequest
    from kdalign.models.architecture import Architecture as Architecture
    from kdalign.models.architecture import Stack as Stack
    from kdalign.models.architecture import describe as describe
    from kdalign.recipe import Recipe as Recipe
    from kdalign.recipe import build_recipe as build_recipe
    from kdalign.recipe import load_recipe as load_recipe
    from kdalign.registry import allow_code as allow_code
    from kdalign.runs.record import RunRecord as RunRecord
    from kdalign.runs.record import read_record as read_record
    from kdalign.version import __version__ as __version__

_HOMES = {
    "Architecture": "models.architecture",
    "EvalRequest": "evaluation.request",
    "GenerateSettings": "distillation.sequence_level.settings",
    "Interrupted": "errors",
    "KdalignError": "errors",
    "LayerMap": "alignment.plan",
    "Plan": "alignment.plan",
    "PlanOptions": "alignment.propose",
    "Recipe": "recipe",
    "RunError": "errors",
    "RunRecord": "runs.record",
    "Stack": "models.architecture",
    "UsageError": "errors",
    "__version__": "version",
    "allow_code": "registry",
    "build_recipe": "recipe",
    "compare": "comparison.compare",
    "describe": "models.architecture",
    "distill": "distillation.pipeline",
    "evaluate": "evaluation.evaluate",
    "generate": "distillation.sequence_level.generate",
    "load_recipe": "recipe",
    "propose": "alignment.propose",
    "read_record": "runs.record",
}

__all__ = sorted(_HOMES)

IMPORTED = perf_counter()
"""When this package was imported, which a command does first: from then on its run counts its seconds."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdalign' has no attribute {name!r}")
    return getattr(import_module(f"kdalign.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
