"""The recipe: all settings of a run, validated once and frozen.

A recipe has three sources: a YAML file, flags that win over it, and ``--set section.key=value`` that wins over both.
The dump holds every default, and loading the dump gives the same recipe again.

Names are loaded on first use: the table of flags is read by ``--help``, which should not wait for pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdalign.recipe.flags import term_weights
    from kdalign.recipe.loading import (
        ABLATION_KEYS,
        build_recipe,
        code_in_assignments,
        for_task,
        load_recipe,
        merge,
        missing_keys,
        parse_value,
        read_tree,
        recipe_of_task,
        set_key,
        validate_recipe,
    )
    from kdalign.recipe.objective import ARMS, ObjectiveWeights
    from kdalign.recipe.recipe import CHECKS, Recipe
    from kdalign.recipe.sections import (
        LAYER_WEIGHTS,
        LONGEST_INPUT,
        MOST_ROWS,
        MOST_TOKENS,
        UNLABELLED_KEYS,
        AlignSettings,
        AugmentSettings,
        DataSettings,
        FinetuneSettings,
        TrainSettings,
    )
    from kdalign.recipe.task_defaults import (
        EMBEDDING_TASK,
        PRETRAINED,
        TASK_FILES,
        TOKEN_TASKS,
        MultiTask,
    )
    from kdalign.recipe.teachers import AUTO_CACHE, CacheSettings, OnPolicySettings, TeachersSettings
    from kdalign.recipe.terms import ANSWER_TERMS, KEYS_OF_TERMS, TERM_FACTS, TERM_KEYS, TermFacts, describe_weights

__all__ = [
    "ABLATION_KEYS",
    "ANSWER_TERMS",
    "ARMS",
    "AUTO_CACHE",
    "CHECKS",
    "EMBEDDING_TASK",
    "KEYS_OF_TERMS",
    "LAYER_WEIGHTS",
    "LONGEST_INPUT",
    "MOST_ROWS",
    "MOST_TOKENS",
    "PRETRAINED",
    "TASK_FILES",
    "TERM_FACTS",
    "TERM_KEYS",
    "TOKEN_TASKS",
    "UNLABELLED_KEYS",
    "AlignSettings",
    "AugmentSettings",
    "CacheSettings",
    "DataSettings",
    "FinetuneSettings",
    "MultiTask",
    "ObjectiveWeights",
    "OnPolicySettings",
    "Recipe",
    "TeachersSettings",
    "TermFacts",
    "TrainSettings",
    "build_recipe",
    "code_in_assignments",
    "describe_weights",
    "for_task",
    "load_recipe",
    "merge",
    "missing_keys",
    "parse_value",
    "read_tree",
    "recipe_of_task",
    "set_key",
    "term_weights",
    "validate_recipe",
]

_MODULES = ("flags", "loading", "objective", "recipe", "sections", "task_defaults", "teachers", "terms")


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        names = vars(import_module(f"{__name__}.{module}"))
        if name in names:
            return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
