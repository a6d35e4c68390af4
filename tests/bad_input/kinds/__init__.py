"""Strategies of cases, by kind, and how many of 2,000 each kind has."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from tests.bad_input.case import Case
from tests.bad_input.kinds import commands, folders, models, tables, texts

Strategy = Callable[[Path], st.SearchStrategy[Case]]

KINDS: dict[str, tuple[int, Strategy]] = {
    "recipes": (150, texts.recipes),
    "`--set` of every key": (300, texts.assignments),
    "flags of every command": (300, commands.flags),
    "ablation recipes": (60, texts.ablations),
    "plans": (70, texts.plans),
    "task files": (100, texts.task_files),
    "data files": (220, tables.data_files),
    "predictions files": (110, tables.predictions),
    "published rows": (70, texts.published),
    "record.json": (130, folders.records),
    "archived results": (50, folders.archives),
    "model folders": (180, models.model_folders),
    "caches": (60, folders.caches),
    "checkpoints and unfinished runs": (60, folders.checkpoints),
    "generated data": (60, folders.generated),
    "answers of a server": (80, folders.answers),
}
"""For each kind, its share of 2,000 and its strategy, given the folder of good inputs."""
