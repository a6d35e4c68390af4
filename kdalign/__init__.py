"""kdalign: distill a large Transformers model into a small one by multi-layer feature alignment.

Everything public is a name of this package; it is loaded on first use, so that importing kdalign costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdalign.alignment.plan import LayerMap, Plan
    from kdalign.alignment.propose import propose
    from kdalign.comparison.compare import compare
    from kdalign.distillation.pipeline import distill
    from kdalign.errors import Interrupted, KdalignError, RunError, UsageError
    from kdalign.evaluation.evaluate import Asked, evaluate
    from kdalign.models.architecture import Architecture, Stack, describe
    from kdalign.recipe import Recipe, build_recipe, load_recipe
    from kdalign.registry import allow_code
    from kdalign.runs.record import RunRecord, read_record
    from kdalign.version import __version__

_HOMES = {
    "Architecture": "models.architecture",
    "Asked": "evaluation.evaluate",
    "Interrupted": "errors",
    "KdalignError": "errors",
    "LayerMap": "alignment.plan",
    "Plan": "alignment.plan",
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
    "load_recipe": "recipe",
    "propose": "alignment.plan",
    "read_record": "runs.record",
}

__all__ = [
    "Architecture",
    "Asked",
    "Interrupted",
    "KdalignError",
    "LayerMap",
    "Plan",
    "Recipe",
    "RunError",
    "RunRecord",
    "Stack",
    "UsageError",
    "__version__",
    "allow_code",
    "build_recipe",
    "compare",
    "describe",
    "distill",
    "evaluate",
    "load_recipe",
    "propose",
    "read_record",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdalign' has no attribute {name!r}")
    return getattr(import_module(f"kdalign.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
