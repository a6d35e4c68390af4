"""Finished runs with their folders, records, recipes and names, for tables and plots; no model, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdalign.recipe import Recipe
from kdalign.runs.discovery import recipe_key
from kdalign.runs.folder import RunFolder, find_runs
from kdalign.runs.integrity import read_checked
from kdalign.runs.record import RECORD, RunRecord


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's folder and record, with its name in a table or plot.

    Attributes:
        group: key of the recipe, equal for runs that differ by seed alone.
    """

    name: str
    folder: RunFolder
    record: RunRecord
    group: str

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.record.parsed_recipe()

    @property
    def split(self) -> str:
        """The split that stands for the task."""
        return self.record.split


def finished_runs(paths: Sequence[str | Path]) -> list[FinishedRun]:
    """Find all finished runs at or below some paths, each once; files that are not records are skipped."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        folder = path.parent if path.name == RECORD else path
        folders |= dict.fromkeys(found.resolve() for found in find_runs(folder))
    names = _names(list(folders))
    runs = []
    for folder, name in names.items():
        record = read_checked(folder)
        runs.append(FinishedRun(name, RunFolder(folder), record, recipe_key({record.task: record})))
    return runs


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Names of folders, with their parent's for one of several tasks and for a name that occurs twice."""
    names = {}
    for folder in folders:
        twice = sum(other.name == folder.name for other in folders) > 1
        several = (folder.parent / "recipe.yaml").is_file()
        names[folder] = f"{folder.parent.name}/{folder.name}" if twice or several else folder.name
    return names
