"""The recipe: all that decides a run, validated once and frozen.

Three sources make one recipe: a YAML file, flags that win over it, and ``--set section.key=value`` that wins over
both. The dump holds every default, and loading the dump gives the same recipe again.
"""

from kdalign.recipe.loading import (
    assign,
    build_recipe,
    code_written,
    load_recipe,
    merged,
    missing_keys,
    read_tree,
    recipe_of,
    recipe_of_task,
    term_weights,
    value_of,
    with_own,
)
from kdalign.recipe.objective import ANSWER_TERMS, ARMS, KEYS_OF_TERMS, TERM_KEYS, Objective
from kdalign.recipe.recipe import CHECKS, Recipe
from kdalign.recipe.sections import (
    LAYER_WEIGHTS,
    LONGEST_INPUT,
    MOST_ROWS,
    MOST_TOKENS,
    UNLABELLED_KEYS,
    Align,
    Augment,
    Data,
    Finetune,
    Train,
)
from kdalign.recipe.task_defaults import EMBEDDING_TASK, PRETRAINED, TASK_FILES, TOKEN_TASKS, MultiTask, defaults_of

__all__ = [
    "ANSWER_TERMS",
    "ARMS",
    "CHECKS",
    "EMBEDDING_TASK",
    "KEYS_OF_TERMS",
    "LAYER_WEIGHTS",
    "LONGEST_INPUT",
    "MOST_ROWS",
    "MOST_TOKENS",
    "PRETRAINED",
    "TASK_FILES",
    "TERM_KEYS",
    "TOKEN_TASKS",
    "UNLABELLED_KEYS",
    "Align",
    "Augment",
    "Data",
    "Finetune",
    "MultiTask",
    "Objective",
    "Recipe",
    "Train",
    "assign",
    "build_recipe",
    "code_written",
    "defaults_of",
    "load_recipe",
    "merged",
    "missing_keys",
    "read_tree",
    "recipe_of",
    "recipe_of_task",
    "term_weights",
    "value_of",
    "with_own",
]
