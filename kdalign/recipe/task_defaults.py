"""Defaults of a recipe by kind of task, and the section of several tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, field_validator

from kdalign.errors import UsageError, did_you_mean
from kdalign.files import is_file
from kdalign.recipe.objective import ObjectiveWeights
from kdalign.recipe.sections import AlignSettings, DataSettings, FinetuneSettings, Section, check_plain
from kdalign.recipe.strict_yaml import read_yaml

PRETRAINED = "pretrained"
_OF_A_TASK: Mapping[str, type[BaseModel]] = {
    "data": DataSettings,
    "align": AlignSettings,
    "objective": ObjectiveWeights,
    "finetune": FinetuneSettings,
}
"""Sections that may differ between the tasks of one student."""


class MultiTask(Section):
    """Several tasks; trained together they share layers and embeddings, and have a head each."""

    together: bool = False
    """Train one student for all tasks (``--multi-task``) instead of one per task."""
    sampling: Literal["temperature", "size", "equal"] = "temperature"
    """Task of each step's batch: drawn by number of training examples to the power of 1 / temperature
    (``temperature``), by that number (``size``), or uniformly (``equal``)."""
    temperature: float = Field(2.0, ge=1, le=1e12)
    """Temperature of ``sampling: temperature``: 1 equals ``size``; the higher, the closer to ``equal``."""
    body_from: str = PRETRAINED
    """Start of shared layers that are cut out of the teacher: the teacher before fine-tuning (``pretrained``), which
    favours no task, or after fine-tuning on the task of this name."""
    tasks: Mapping[str, Mapping[str, Any]] = {}
    """Settings of single tasks, trained together or one by one: keys of ``data``, ``align``, ``objective`` and
    ``finetune``, such as ``{cola: {objective.beta: 2}}``."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _flatten_sections(cls, value: object) -> object:
        """Flatten sections to dotted keys: ``{cola: {objective: {beta: 2}}}`` is ``{cola: {objective.beta: 2}}``."""
        if not isinstance(value, Mapping) or not all(isinstance(changes, Mapping) for changes in value.values()):
            raise ValueError(
                "multi_task.tasks takes names of tasks, each with keys, such as {cola: {objective.beta: 2}}"
            )
        check_plain(value, "multi_task.tasks")
        found: dict[str, dict[str, Any]] = {}
        for task, changes in value.items():
            flat = found.setdefault(str(task), {})
            for key, given in changes.items():
                inner = given.items() if key in _OF_A_TASK and isinstance(given, Mapping) else None
                flat |= {key: given} if inner is None else {f"{key}.{name}": each for name, each in inner}
        return found

    @field_validator("tasks")
    @classmethod
    def _check_keys(cls, value: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        known = [f"{name}.{key}" for name, section in _OF_A_TASK.items() for key in section.model_fields]
        known.remove("data.task")
        for task, changes in value.items():
            for key in changes:
                if key not in known:
                    near = did_you_mean(str(key), known)
                    raise ValueError(f"{task} cannot change {key!r}{near} (accepted: keys of {', '.join(_OF_A_TASK)})")
        return value


NO_TEACHER = "none"
SERVED_PREFIX = "openai:"
"""Beginning of the names of models behind an API."""

TOKEN_TASKS = (
    "lm",
    "masked-lm",
    "language-modeling",
    "translation",
    "summarization",
    "dialogue",
    "transcription",
    "speech-recognition",
    "chat",
)
EMBEDDING_TASK = "embedding"

LANGUAGE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "data": {"max_length": 256},
    "objective": {"temperature": 1.0, "beta": 1.0, "gamma": 0.0, "delta": 0.0},
    "train": {"epochs": 1.0, "batch_size": 16},
}
"""Defaults for tasks of tokens: temperature 1, features by cosine only (Muralidharan et al. 2024, arXiv:2407.14679: for
decoders attention relations add nothing), and longer rows."""
EMBEDDING_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "objective": {"hard": 0.0, "alpha": 1.0},
    "train": {"epochs": 1.0, "dropout": 0.0},
}
"""Defaults for embeddings, which have no labels; without dropout the training loss falls much further."""
IMAGE_TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"data": {"max_length": 77}}
"""Defaults for images with texts: the positions of the published CLIPs (Radford et al. 2021, arXiv:2103.00020)."""
ALONE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "objective": {"hard": 1.0, "alpha": 0.0, "beta": 0.0, "gamma": 0.0, "delta": 0.0}
}
"""Defaults without a teacher."""
SERVED_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"objective": {"beta": 0.0, "gamma": 0.0, "delta": 0.0}}
"""Defaults for a teacher behind an API, whose layers are not visible."""


def task_defaults(task: str) -> Mapping[str, Mapping[str, Any]]:
    """Defaults of a task by its name."""
    kind = _kind_of(task)
    if kind in TOKEN_TASKS:
        return LANGUAGE_DEFAULTS
    return {EMBEDDING_TASK: EMBEDDING_DEFAULTS, "image-text": IMAGE_TEXT_DEFAULTS}.get(kind, {})


def output_kind(task: str) -> str:
    """Kind of a task's outputs: ``classes``, ``tokens`` or ``embeddings``."""
    kind = _kind_of(task)
    return "tokens" if kind in TOKEN_TASKS else "embeddings" if kind == EMBEDDING_TASK else "classes"


DEFAULTED = frozenset(
    f"{section}.{key}"
    for defaults in (LANGUAGE_DEFAULTS, EMBEDDING_DEFAULTS)
    for section, values in defaults.items()
    for key in values
)
"""Keys whose defaults depend on the kind of task."""


def is_missing(task: str) -> bool:
    """Return whether a task's file is not here, so that its kind is unknown: results are read without it."""
    return task.endswith((".yaml", ".yml")) and not is_file(Path(task))


TASK_FILES = Path(__file__).parents[1] / "data" / "tasks" / "files"
"""Folder of the built-in task files; a file's name without its ending is a task."""


def _kind_of(task: str) -> str:
    """Kind of a task: the beginning of its name, or the kind in its task file."""
    file = Path(task) if task.endswith((".yaml", ".yml")) else TASK_FILES / f"{task}.yaml"
    if not is_file(file):
        return task.partition(":")[0]
    try:
        tree = read_yaml(file, yaml.BaseLoader)
    except UsageError:  # reported by the reader of the whole file
        return ""
    return str(tree.get("kind", "")) if isinstance(tree, dict) else ""
