"""kdalign: distill a large Transformers model into a small one by multi-layer feature alignment.

Everything public is a name of this package; it is loaded on first use, so that importing kdalign costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdalign.alignment import LayerMap, Plan, propose
    from kdalign.architecture import Architecture, Stack, describe
    from kdalign.comparison import compare
    from kdalign.errors import Interrupted, KdalignError, RunError, UsageError
    from kdalign.extend import allow_code
    from kdalign.pipeline import distill
    from kdalign.recipe import Recipe, build_recipe, load_recipe
    from kdalign.runs import RunRecord, read_record
    from kdalign.scoring import Asked, evaluate
    from kdalign.version import __version__

_HOMES = {
    "Architecture": "architecture",
    "Asked": "scoring",
    "Interrupted": "errors",
    "KdalignError": "errors",
    "LayerMap": "alignment",
    "Plan": "alignment",
    "Recipe": "recipe",
    "RunError": "errors",
    "RunRecord": "runs",
    "Stack": "architecture",
    "UsageError": "errors",
    "__version__": "version",
    "allow_code": "extend",
    "build_recipe": "recipe",
    "compare": "comparison",
    "describe": "architecture",
    "distill": "pipeline",
    "evaluate": "scoring",
    "load_recipe": "recipe",
    "propose": "alignment",
    "read_record": "runs",
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
