"""The story of several tasks in one student: a body that they share, a head each, and whose batch a step takes.

Multi-task distillation after Clark et al. 2019 (BAM!, arXiv:1907.04829, section 3): a teacher for each task teaches one
student, whose steps take turns over the tasks.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.data.batches import steps_per_epoch
from kdalign.data.tasks.holdout import normalise_rows
from kdalign.distillation.build import build_task
from kdalign.distillation.export import ExportOptions, export_student
from kdalign.distillation.load import LoadedModels, load
from kdalign.distillation.prepare import PreparedRun, resume_command
from kdalign.distillation.tokenize import begin_folder, open_run
from kdalign.errors import Interrupted, UsageError
from kdalign.files import atomic_file, write_json
from kdalign.observer import Observer
from kdalign.recipe import PRETRAINED, MultiTask, Recipe
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import read_checked
from kdalign.runs.record import RunRecord
from kdalign.training.loop import Trainer, start_trackers

BLOCK = 32
"""Steps of which each task has its share."""
_BODY, _HEAD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sampling_probabilities(examples: Sequence[int], settings: MultiTask) -> Float[np.ndarray[Any, Any], "tasks"]:
    r"""The probability with which a step takes each task, by its number of training examples.

    .. math:: p_i = n_i^{1/T} / \sum_j n_j^{1/T}

    T is 1 where tasks are sampled by their size, without end where they are equal. Raffel et al. 2020,
    arXiv:1910.10683, section 3.5.2, there with a limit on n; T = 4/3 is that of Clark et al. 2019, arXiv:1907.04829.
    """
    power = {"size": 1.0, "equal": 0.0, "temperature": 1 / settings.temperature}[settings.sampling]
    weights = np.asarray(examples, dtype=np.float64) ** power
    return np.asarray(weights / weights.sum())


def task_schedule(
    shares: Float[np.ndarray[Any, Any], "tasks"], seed: int, steps: int
) -> Int[np.ndarray[Any, Any], "steps"]:
    """For each step the number of the task that it takes: a function of (seed, step), the same on all ranks.

    Of each ``BLOCK`` steps one draws in each of as many equal parts of the range, in random order: every step has these
    probabilities, and a task has its share of every block, but for one step or two.
    """
    generator = np.random.default_rng([seed, 0, 1])
    # Block after block, so that a longer run begins with the turns of a shorter one.
    blocks = [generator.permutation(BLOCK) + generator.random(BLOCK) for _ in range(-(-steps // BLOCK))]
    drawn = np.concatenate(blocks)[:steps] / BLOCK
    return np.minimum(np.searchsorted(np.cumsum(shares), drawn, side="right"), len(shares) - 1)


@dataclass(frozen=True)
class TaskMixture:
    """How steps are shared out over tasks.

    Attributes:
        examples: for training, by task.
        shares: the probabilities, by task.
        turns: for each step the number of its task.
    """

    examples: Mapping[str, int]
    shares: Mapping[str, float]
    turns: tuple[int, ...]

    def steps(self, after: float = 0.0) -> dict[str, int]:
        """Of each task, once this share of all steps is over."""
        counts = np.bincount(self.turns[round(after * len(self.turns)) :], minlength=len(self.examples))
        return dict(zip(self.examples, counts.tolist(), strict=True))


def plan_mixture(runs: Sequence[PreparedRun]) -> TaskMixture:
    """How the steps of these tasks' student are shared out; without ``max_steps`` they are epochs of all examples."""
    recipe, sizes = runs[0].recipe, [run.an_epoch for run in runs]
    train = recipe.train
    epoch = sum(steps_per_epoch(np.zeros(size), train.batch_size) for size in sizes)
    shares = sampling_probabilities(sizes, recipe.multi_task)
    turns = task_schedule(shares, train.seed, train.max_steps or max(1, round(train.epochs * epoch)))
    names = [run.task.name for run in runs]
    return TaskMixture(
        dict(zip(names, sizes, strict=True)), dict(zip(names, shares.tolist(), strict=True)), tuple(turns.tolist())
    )


def check_together(runs: Sequence[PreparedRun]) -> None:
    """Refuse a mixture in which a task's head is never trained.

    Raises:
        UsageError: the task, and what can be done.
    """
    mixture = plan_mixture(runs)
    for run in runs:
        after = run.recipe.objective.stages[-1][0]
        if not mixture.steps(after)[run.task.name]:
            which = f"{len(mixture.turns):,} steps" + (" that its answers are trained in" if after else "")
            raise UsageError(
                f"task {run.task.name!r} would get none of the {which}: train for longer, or share steps out more "
                f"evenly (multi_task.sampling=equal)"
            )


def find_leaks(runs: Sequence[PreparedRun]) -> list[str]:
    """Texts that are reported on for one task and trained on for another, a line for each split and other task.

    They are compared word for word, in lower case.
    """
    trained = {run.task.name: set(normalise_rows(run.train)) for run in runs}
    found = []
    for run in runs:
        for split, examples in run.reported.items():
            for other, texts in trained.items():
                seen = sum(row in texts for row in normalise_rows(examples))
                if seen and other != run.task.name:
                    found.append(
                        f"{seen:,} of the {len(examples):,} texts of {run.task.name}, {split}, are in the training "
                        f"text of {other}"
                    )
    return found


def distill_together(
    runs: Sequence[PreparedRun],
    recipe: Recipe,
    group: RunFolder,
    accelerator: Accelerator,
    observer: Observer,
    resume: bool,
) -> list[RunRecord]:
    """Train one student on all tasks; each task's record, in a folder of its own below ``group``.

    Args:
        runs: one a task, checked.
        recipe: of all of them.
        group: where checkpoints and the log are.
        accelerator: device and ranks.
        observer: who watches.
        resume: go on where such a run stopped.
    """
    begun = time.perf_counter()
    if resume and all(run.folder.complete for run in runs):
        observer.announce(f"the student of {len(runs)} tasks is finished already: {group.path}")
        return [read_checked(run.folder.path) for run in runs]
    main = accelerator.is_main_process
    ready = [open_run(run, accelerator) for run in runs]
    mixture = plan_mixture(runs)
    if main:
        group.begin(recipe.dump(), {f"{r.task.name} {key}": of for r in runs for key, of in r.inputs.items()}, resume)
    accelerator.wait_for_everyone()
    loaded, courses = [], []
    for one in ready:
        watching = begin_folder(one, accelerator, observer, resume)
        loaded.append(load(one, accelerator, watching))
    tie_bodies([each.student for each in loaded], _origin(recipe))
    for each in loaded:
        each.source += f", shared by {', '.join(mixture.examples)}"
        watching = observer.into(each.opened.run.folder.log) if main else observer
        courses.append(build_task(each, accelerator, watching, resume))
    observer = observer.into(group.log) if main else observer
    observer.announce(f"one student for {len(runs)} tasks: {_told(mixture)}")
    leaks = find_leaks(runs)
    for line in leaks:
        observer.announce(f"leak: {line}")
    settings = ready[0].recipe.train
    start_trackers(accelerator, recipe)
    what = f"{'distilling' if recipe.has_teacher else 'training'} {len(runs)} tasks"
    try:
        progress = Trainer(courses, mixture.turns, settings, accelerator, group, observer).train(what, resume)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; go on with: {resume_command(runs, group)}", stop.signal) from None
    for tracker in accelerator.trackers:
        tracker.finish()
    facts = _facts(recipe, mixture, loaded) | {"seconds": progress.seconds, "leaks": leaks}
    records = []
    for each, course in zip(loaded, courses, strict=True):
        first = None if each is loaded[0] else courses[0].folder.student / _BODY
        options = ExportOptions(partial(export_with_body, body=first), {"multi_task": facts})
        spent = progress.of(course.name)
        watching = observer.into(course.folder.log) if main else observer
        records.append(export_student(each, course, spent, accelerator, watching, begun, options))
    return records


def tie_bodies(students: Sequence[PreTrainedModel], origin: int = 0) -> None:
    """Put the body of one of these models (all below its head) in the place of all others'."""
    body = students[origin].base_model
    assert body is not students[origin], "what classifies has a head on a body"
    for each in students:
        setattr(each, each.base_model_prefix, body)


def export_with_body(model: PreTrainedModel, folder: Path, *, body: Path | None) -> None:
    """Write a model as a stock checkpoint in two shards, its body and its head.

    Args:
        model: in float32.
        folder: where to.
        body: the shard of another model with the same body, to which the file is linked: hard, so that every folder is
            whole by itself and the body is on disk once; copied where the file system has no links.
    """
    shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left may be linked to
    model.save_pretrained(folder)
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    shards: dict[str, dict[str, Tensor]] = {_BODY: {}, _HEAD: {}}
    for name, tensor in tensors.items():
        shards[_BODY if name.startswith(f"{model.base_model_prefix}.") else _HEAD][name] = tensor
    for name, held in shards.items():
        if name == _BODY and body is not None:
            _link(body, folder / name)
            continue
        with atomic_file(folder / name) as temporary:
            save_file(held, temporary, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
    whole.unlink()


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _origin(recipe: Recipe) -> int:
    """The number of the task whose student's body is taken: all start alike, unless one is named."""
    named = recipe.multi_task.body_from
    return 0 if named == PRETRAINED else recipe.data.task.index(named)


def _told(mixture: TaskMixture) -> str:
    steps = mixture.steps()
    return ", ".join(
        f"{name} {100 * share:.1f} % (steps: {steps[name]:,}; examples: {mixture.examples[name]:,})"
        for name, share in mixture.shares.items()
    )


def _facts(recipe: Recipe, mixture: TaskMixture, loaded: Sequence[LoadedModels]) -> dict[str, Any]:
    """What the tasks' records say of the whole: the body once and all heads."""
    whole = {parameter for each in loaded for parameter in each.student.parameters()}
    settings, steps = recipe.multi_task, mixture.steps()
    return {
        "sampling": settings.sampling,
        "temperature": settings.temperature if settings.sampling == "temperature" else None,
        "body_from": settings.body_from,
        "tasks": {
            name: {"examples": size, "share": mixture.shares[name], "steps": steps[name]}
            for name, size in mixture.examples.items()
        },
        "parameters": sum(parameter.numel() for parameter in whole),
        "megabytes": sum(parameter.numel() * parameter.element_size() for parameter in whole) / 1e6,
        "steps": len(mixture.turns),
    }
