"""Check a recipe against models and data before any weights are loaded and before anything is written."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdalign import models, student
from kdalign.alignment import Plan, propose, read_plan
from kdalign.architecture import Architecture, describe, with_layers
from kdalign.errors import UsageError
from kdalign.files import check_writable
from kdalign.models import Checkpoint
from kdalign.recipe import Data, Recipe, Train, load_recipe
from kdalign.runs import RunFolder
from kdalign.tasks import Examples, Task, find_task, hold_out, load_examples
from kdalign.tasks.data import split_exists
from kdalign.training import total_steps

MONITORED = (100, 500)
"""At least and at most so many examples of train, a twentieth of them between, are evaluated on the way where none
are held out: some ten evaluations then cost little beside the training."""


@dataclass(frozen=True)
class Prepared:
    """A run that was checked: configurations and data are read, weights are not.

    Attributes:
        cut_to: the number of layers of a student that is cut out of the teacher; None for a checkpoint.
        cut_from: the teacher layers it starts from; None for a checkpoint or a random start.
        plan: the shape plan.
    """

    recipe: Recipe
    task: Task
    teacher: Checkpoint
    student: Checkpoint | None
    cut_to: int | None
    cut_from: tuple[int, ...] | None
    plan: Plan
    train: Examples
    watched: Examples
    reported: Mapping[str, Examples]
    folder: RunFolder

    @property
    def finetunes(self) -> bool:
        """Whether the teacher must first be fine-tuned."""
        return not self.teacher.has_classifier

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of the models and splits that the run reads."""
        found = {"teacher": self.teacher.hash, "train": self.train.fingerprint()}
        found |= {split: examples.fingerprint() for split, examples in self.reported.items()}
        return found | ({"student": self.student.hash} if self.student is not None else {})

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return total_steps(self.recipe.train, len(self.train))

    @property
    def watched_word(self) -> str:
        """What the slice of train that is watched is called."""
        return "held out of train" if self.recipe.train.holds_out else "part of train"


def prepare(recipe: Recipe) -> Prepared:
    """Check everything that can be checked without weights.

    Raises:
        UsageError: the first thing that is wrong.
    """
    data = recipe.data
    task = find_task(data.task[0], data.folder, data.dataset, data.config)
    teacher = models.locate(recipe.teacher, recipe.revision)
    their_architecture = describe(teacher.config)
    cut_to = student.layers_of_cut(recipe.student, their_architecture.stacks[0].layers)
    own, cut_from = None, None
    if cut_to is None:
        own = models.locate(recipe.student, recipe.student_revision)
        our_architecture = describe(own.config)
    else:
        cut_from = student.starting_layers(recipe.init, cut_to, their_architecture.stacks[0].layers)
        our_architecture = describe(with_layers(teacher.config, cut_to))
    _check_heads(recipe, task, teacher, own)
    plan = _plan(recipe, their_architecture, our_architecture, cut_from)
    tokenizer = models.load_tokenizer(teacher)
    models.check_length(teacher, data.max_length)
    if own is not None:
        if not models.same_tokenizer(tokenizer, models.load_tokenizer(own)):
            raise UsageError(
                f"teacher {teacher.name!r} and student {own.name!r} have different tokenizers (token for token); "
                f"choose a student with the teacher's vocabulary"
            )
        models.check_length(own, data.max_length)
    train_examples = _limited(load_examples(task, task.train), data, recipe.train.seed)
    if train_examples.labels is None:
        raise UsageError(f"{task.source}, split {task.train!r} has no labels in column {task.label!r}")
    train_examples, watched = _watched(train_examples, recipe.train)
    folder = RunFolder(Path(recipe.out or f"runs/{default_name(recipe, task)}"))
    check_writable(folder.path)
    return Prepared(
        recipe=recipe.with_changes(out=str(folder.path)),
        task=task,
        teacher=teacher,
        student=own,
        cut_to=cut_to,
        cut_from=cut_from,
        plan=plan,
        train=train_examples,
        watched=watched,
        reported=_reported(task, data),
        folder=folder,
    )


def shape_plan(teacher: Checkpoint, student_name: str, choice: str, init: str) -> Plan:
    """The plan between a teacher and a student that is named as in ``--student``."""
    theirs = describe(teacher.config)
    cut_to = student.layers_of_cut(student_name, theirs.stacks[0].layers)
    if cut_to is None:
        return propose(theirs, describe(models.locate(student_name).config), choice)
    cut_from = student.starting_layers(init, cut_to, theirs.stacks[0].layers)
    return propose(theirs, describe(with_layers(teacher.config, cut_to)), choice, cut_from)


def split_by_task(recipe: Recipe) -> list[Recipe]:
    """One recipe per task; several get a folder each below ``out``."""
    tasks = recipe.data.task
    if len(tasks) == 1:
        return [recipe]
    parent = Path(recipe.out or f"runs/{default_name(recipe, None)}")
    return [
        recipe.with_changes(data={**recipe.data.model_dump(), "task": (task,)}, out=str(parent / Path(task).stem))
        for task in tasks
    ]


def default_name(recipe: Recipe, task: Task | None) -> str:
    """The run folder's name where none is given: task, teacher, student and seed."""
    words = [task.name if task else "-".join(Path(name).stem for name in recipe.data.task)]
    words += [Path(recipe.teacher).name, Path(recipe.student).name.replace("=", ""), f"seed{recipe.train.seed}"]
    return "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in words)


def _check_heads(recipe: Recipe, task: Task, teacher: Checkpoint, own: Checkpoint | None) -> None:
    if teacher.has_classifier:
        models.check_head(teacher, task)
    elif not recipe.finetune_teacher:
        raise UsageError(
            f"teacher {teacher.name!r} has no classification head, so it cannot teach {task.name!r}; "
            f"allow fine-tuning it first, or give a fine-tuned one"
        )
    if own is not None and own.has_classifier and recipe.init == "random":
        raise UsageError("--init random is for a student cut out of the teacher (layers=N)")


def _plan(recipe: Recipe, teacher: Architecture, ours: Architecture, cut_from: tuple[int, ...] | None) -> Plan:
    if recipe.align.plan is not None:
        if recipe.align.weights is not None or recipe.align.map != "auto":
            raise UsageError("a plan holds its own map and weights: give --plan, or --map and align.weights, not both")
        plan = read_plan(Path(recipe.align.plan)).with_statistics({})  # another teacher of this shape has others
        plan.fits(teacher, ours)
    else:
        plan = propose(teacher, ours, recipe.align.map, cut_from, recipe.align.weights)
    theirs, our = teacher.stacks[0], ours.stacks[0]
    if recipe.objective.delta > 0 and theirs.heads != our.heads:
        raise UsageError(
            f"the teacher has {theirs.heads} attention heads and the student {our.heads}: their maps cannot be "
            f"compared; give --delta 0"
        )
    return plan


def _limited(examples: Examples, data: Data, seed: int) -> Examples:
    if data.limit is None or data.limit >= len(examples):
        return examples
    rows = np.random.default_rng([seed, len(examples)]).permutation(len(examples))[: data.limit]
    return examples.take(sorted(rows.tolist()))


def _watched(examples: Examples, settings: Train) -> tuple[Examples, Examples]:
    """The rows to train on, and the slice of train that is evaluated on the way."""
    if settings.holds_out:
        kept, held = hold_out(examples, settings.holdout, settings.seed)
        return examples.take(kept), examples.take(held)
    size = int(np.clip(len(examples) // 20, *MONITORED))
    rows = np.random.default_rng([settings.seed, 1]).permutation(len(examples))[:size]
    return examples, examples.take(sorted(rows.tolist()))


def _reported(task: Task, data: Data) -> dict[str, Examples]:
    """The labelled splits that the run is scored on, once, at its end."""
    found = {}
    for number, split in enumerate(task.evaluation):
        if number and not split_exists(task.source, split):
            continue
        examples = load_examples(task, split)
        if examples.labels is None:
            raise UsageError(f"{task.source}, split {split!r} has no labels to score against")
        found[split] = examples.take(range(min(len(examples), data.limit or len(examples))))
    return found


def claim(
    folder: RunFolder, recipe: Recipe, resume: bool, overwrite: bool, inputs: Mapping[str, str] | None = None
) -> None:
    """Refuse a folder that holds something, unless it is a run to resume or to overwrite; nothing is changed yet.

    Raises:
        UsageError: what lies there, and what can be done.
    """
    if not folder.started:
        return
    if not folder.recipe.is_file():
        raise UsageError(f"{str(folder.path)!r} is not empty and holds no run; choose another --out")
    if not (resume or overwrite):
        state = "a finished run" if (folder.complete or len(recipe.data.task) > 1) else "an unfinished run"
        raise UsageError(f"{str(folder.path)!r} holds {state}: give --resume, --overwrite or another --out")
    if resume:
        changed = _difference(load_recipe(folder.recipe), recipe)
        if changed:
            raise UsageError(f"{str(folder.path)!r} holds a run of another recipe ({changed}); give another --out")
        before = json.loads(folder.inputs.read_text(encoding="utf-8")) if folder.inputs.is_file() else {}
        for name, value in (inputs or {}).items():
            if before.get(name, value) != value:
                raise UsageError(
                    f"{str(folder.path)!r} holds a run on another {name} ({before[name]} then, {value} now); "
                    f"give --overwrite or another --out"
                )


def _difference(saved: Recipe, given: Recipe) -> str:
    """The first key on which two recipes differ, beside the folder and a precision that was left to kdalign."""
    ours, theirs = given.flat(), saved.flat()
    for key, value in ours.items():
        if key == "out" or (key == "train.precision" and "auto" in (value, theirs[key])):
            continue
        if theirs[key] != value:
            return f"{key} is {theirs[key]} there, {value} here"
    return ""
