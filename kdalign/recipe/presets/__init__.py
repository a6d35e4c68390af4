"""Presets: published distillation methods as a start for recipes.

Each is a YAML file in this folder: a description (``about``), its paper (``source``), its requirements (``needs``),
its kinds of task (``tasks``), its differences from the paper (``differs``), the recipe keys that it sets (``recipe``),
and keys for single tasks that win over those (``by_task``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from kdalign.errors import UsageError, unknown

FOLDER = Path(__file__).parent
DEFAULT = "feature-alignment"
"""The method of a recipe without a preset."""


@dataclass(frozen=True)
class Preset:
    """A published method.

    Attributes:
        name: name in the literature.
        about: description of its objective in a sentence.
        source: its paper.
        needs: requirements on models, data or task.
        tasks: supported kinds of task: ``classes`` (also scores), ``tokens``, ``embeddings``.
        differs: differences from the paper.
        recipe: recipe keys that it sets; keys of the recipe itself win over them.
        by_task: keys for single tasks, by name, which win over those of ``recipe``.
    """

    name: str
    about: str
    source: str
    needs: tuple[str, ...]
    tasks: tuple[str, ...]
    differs: tuple[str, ...]
    recipe: Mapping[str, Any]
    by_task: Mapping[str, Mapping[str, Any]]

    def check(self, kind: str, task: str) -> None:
        """Refuse a kind of task that the method does not support.

        Raises:
            UsageError: another kind; the error names the supported ones.
        """
        if kind not in self.tasks:
            raise UsageError(f"preset {self.name!r} is for tasks of {' and '.join(self.tasks)}; {task!r} is of {kind}")

    def text(self) -> str:
        """Format as a recipe file, with the description in comments."""
        lines = [f"{self.name}: {self.about}", f"Source: {self.source}"]
        lines += [f"Needs {need}." for need in self.needs] + [f"Unlike the paper, {one}." for one in self.differs]
        lines += [f"For tasks of {' and '.join(self.tasks)}."]
        own = {**self.by_task, "other tasks": self.recipe} if self.by_task else {}
        lines += [f"For {task}: {_in_words(keys)}." for task, keys in own.items()]
        comments = [f"# {part}" for line in lines for part in wrap(line, 118, subsequent_indent="  ")]
        # Keys of single tasks stay in the preset: written into the recipe, they would hold for all tasks.
        keys = yaml.safe_dump({"preset": self.name, **({} if self.by_task else self.recipe)}, sort_keys=False)
        return "\n".join([*comments, keys])

    def under(self, tree: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
        """Fill in a recipe's tree with the keys of the preset that it leaves out.

        Keys for one of several tasks go to ``multi_task.tasks``.
        """
        if len(tasks) == 1:
            return _under(_under(self.recipe, self.by_task.get(tasks[0], {})), tree)
        found = _under(self.recipe, tree)
        own = {task: _unsaid(self.by_task[task], tree) for task in tasks if task in self.by_task}
        return _under({"multi_task": {"tasks": own}}, found) if any(own.values()) else found


def preset_named(name: str) -> Preset:
    """Load a preset by name.

    Raises:
        UsageError: an unknown name.
    """
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    tree = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    needs, tasks, differs = (tuple(tree.get(key, ())) for key in ("needs", "tasks", "differs"))
    recipe, by_task = tree["recipe"], tree.get("by_task", {})
    return Preset(name, tree["about"], tree["source"], needs, tasks, differs, recipe, by_task)


@cache
def preset_names() -> tuple[str, ...]:
    """All presets, the default first."""
    names = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    return (DEFAULT, *(name for name in names if name != DEFAULT))


def _under(start: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    found = {**start, **tree}
    for key in start.keys() & tree.keys():
        inner, given = start[key], tree[key]
        if isinstance(inner, Mapping) and isinstance(given, Mapping) and given:  # an empty one takes all away
            found[key] = _under(inner, given)
    return found


def _unsaid(keys: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the keys that a tree has."""
    left = {
        section: {key: each for key, each in own.items() if key not in (tree.get(section) or {})}
        for section, own in keys.items()
    }
    return {section: own for section, own in left.items() if own}


def _in_words(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{section}.{key} {value}" for section, own in keys.items() for key, value in own.items())
