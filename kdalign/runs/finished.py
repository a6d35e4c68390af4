"""What finished runs left behind beside their scores: histories, answers to single examples, how to make them again.

Reads run folders and, for the texts of examples, the data that a run was scored on; no model, no torch.
"""

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
    """A run folder with its record, and what a table or picture calls it.

    Attributes:
        group: equal for runs of one recipe that differ by seed alone.
    """

    name: str
    folder: RunFolder
    record: RunRecord
    group: str

    @cached_property
    def recipe(self) -> Recipe:
        """As it was resolved."""
        return self.record.parsed_recipe()

    @property
    def split(self) -> str:
        """The split that stands for the task."""
        return self.record.split


def finished_runs(paths: Sequence[str | Path]) -> list[FinishedRun]:
    """All finished runs at or below these paths, each once; files that are no records are passed over."""
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
    """Folders' own names; with their parent's where it is one recipe's over several tasks, or a name is there twice."""
    names = {}
    for folder in folders:
        twice = sum(other.name == folder.name for other in folders) > 1
        several = (folder.parent / "recipe.yaml").is_file()
        names[folder] = f"{folder.parent.name}/{folder.name}" if twice or several else folder.name
    return names
