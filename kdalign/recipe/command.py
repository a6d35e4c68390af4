"""A recipe as a shell command: flags, ``--set`` for keys without a flag, and no defaults."""

import json
import shlex
from pathlib import Path

from kdalign.recipe.flags import FLAGS, as_word
from kdalign.recipe.recipe import Recipe
from kdalign.recipe.task_defaults import NO_TEACHER

_OPTIONS = {flag.key: flag.option for flag in FLAGS if flag.has_inverse}
_ALWAYS = ("teacher", "student", "data.task")


def distill_command(recipe: Recipe) -> str:
    """Format the ``kdalign distill`` command of a recipe, quoted for a shell, without defaults."""
    if recipe.multi_task.together and len(recipe.data.task) == 1 and recipe.out:  # one task of several in one student
        return shlex.join(["kdalign", "distill", "--recipe", str(Path(recipe.out).parent / "recipe.yaml")])
    start = {"preset": recipe.preset, "teacher": recipe.teacher, "data": {"task": recipe.data.task}}
    plain = Recipe.model_validate(start).flat() | {"preset": None}
    words = ["kdalign", "distill"]
    for key, value in recipe.flat().items():
        if key not in _ALWAYS and value == plain[key]:
            continue
        if key == "teacher":
            words += [word for name in recipe.teacher_names or [NO_TEACHER] for word in ("--teacher", name)]
        elif key in _OPTIONS and value is not None and not (key == "train.batch_size" and recipe.train.batch_tokens):
            words += [_OPTIONS[key], as_word(value)]
        else:
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
