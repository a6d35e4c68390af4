"""Presets: what the field's methods minimise, as the beginning of a recipe.

Each is a YAML file beside this module: what it is (``about``), its paper (``source``), what it needs (``needs``),
for which kinds of task it is (``tasks``), where it differs from its paper (``differs``), and the keys that it sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from kdalign.errors import UsageError, unknown

FOLDER = Path(__file__).parent
DEFAULT = "feature-alignment"
"""What a recipe without a preset is."""


@dataclass(frozen=True)
class Preset:
    """A method by its name in the field.

    Attributes:
        about: what it minimises, in a sentence.
        source: its paper.
        needs: what the models, the data or the task must have.
        tasks: kinds of task: ``classes`` (scores, too), ``tokens``, ``embeddings``.
        differs: where it is not what the paper does.
        recipe: the recipe's keys that it sets; what the recipe itself says wins over them.
    """

    name: str
    about: str
    source: str
    needs: tuple[str, ...]
    tasks: tuple[str, ...]
    differs: tuple[str, ...]
    recipe: Mapping[str, Any]

    def check(self, kind: str, task: str) -> None:
        """Refuse a kind of task that it is not for.

        Raises:
            UsageError: which it is for.
        """
        if kind not in self.tasks:
            raise UsageError(f"preset {self.name!r} is for tasks of {' and '.join(self.tasks)}; {task!r} is of {kind}")

    def text(self) -> str:
        """As a recipe file, which says what it is."""
        lines = [f"{self.name}: {self.about}", f"Source: {self.source}"]
        lines += [f"Needs {need}." for need in self.needs] + [f"Unlike the paper, {one}." for one in self.differs]
        lines += [f"For tasks of {' and '.join(self.tasks)}."]
        comments = [f"# {part}" for line in lines for part in wrap(line, 118, subsequent_indent="  ")]
        keys = yaml.safe_dump({"preset": self.name, **self.recipe}, sort_keys=False)
        return "\n".join([*comments, keys])

    def under(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's tree of keys and values, with the preset's where it says nothing."""
        return _under(self.recipe, tree)


def preset_named(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    tree = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    needs, tasks, differs = (tuple(tree.get(key, ())) for key in ("needs", "tasks", "differs"))
    return Preset(name, tree["about"], tree["source"], needs, tasks, differs, tree["recipe"])


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
