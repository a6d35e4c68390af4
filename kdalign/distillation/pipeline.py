"""The story of a run: prepare, load, plan, train, evaluate, record."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

from accelerate import Accelerator

from kdalign.devices import check_device, make_accelerator
from kdalign.distillation.build import build_task
from kdalign.distillation.export import export_student
from kdalign.distillation.load import load
from kdalign.distillation.multitask import check_together, distill_together, plan_mixture
from kdalign.distillation.preflight import preflight
from kdalign.distillation.prepare import PreparedRun, prepare, resume_command
from kdalign.distillation.run_folders import claim, split_by_task
from kdalign.distillation.tokenize import begin_folder, open_run
from kdalign.errors import Interrupted, Unwritten, UsageError
from kdalign.objective.stages import check_steps
from kdalign.observer import NullObserver, Observer
from kdalign.recipe import Recipe, load_recipe
from kdalign.registry import check_trusted, trusting_caller
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import read_checked
from kdalign.runs.locks import exclusive
from kdalign.runs.record import RunRecord
from kdalign.training.loop import start_trackers, train


def distill(
    recipe: Recipe, observer: Observer | None = None, *, resume: bool = False, overwrite: bool = False
) -> list[RunRecord]:
    """Distill one student per task of the recipe, or one for all; returns each task's record.

    Own terms, maps and metrics that the recipe names are run (``extend``), unless ``kdalign`` the command has said
    otherwise.

    Args:
        recipe: what to do; several tasks lie in folders below ``out``, named after the task.
        observer: who watches.
        resume: go on where a run of this recipe stopped; finished tasks are kept.
        overwrite: put the new run in an old one's place.

    Raises:
        UsageError: the recipe cannot be carried out; nothing was written.
        RunError: training failed.
        Interrupted: a signal arrived; ``resume`` goes on.
    """
    with trusting_caller():
        return _distill(recipe, observer or NullObserver(), resume, overwrite)


def _distill(recipe: Recipe, observer: Observer, resume: bool, overwrite: bool) -> list[RunRecord]:
    runs = prepare_all(recipe, resume=resume, overwrite=overwrite)
    group = RunFolder(runs[0].folder.path.parent) if len(runs) > 1 else None
    whole = group or runs[0].folder
    first = group if group is not None and recipe.multi_task.together else runs[0].folder
    accelerator = make_accelerator(recipe.train.device, recipe.train.trackers, first.path)
    with _alone(whole, accelerator, observer), _way_on(whole, runs):
        if accelerator.is_main_process:  # what was free when it was looked at may have been taken since
            claim_all(runs, recipe, resume, overwrite)
        if group is not None and recipe.multi_task.together:
            with ExitStack() as locks:
                for run in runs:
                    locks.enter_context(_alone(run.folder, accelerator, observer))
                records = distill_together(runs, recipe, group, accelerator, observer, resume)
        else:
            records = _one_by_one(runs, accelerator, observer, resume, (group, recipe))
    accelerator.end_training()
    return records


def _one_by_one(
    runs: Sequence[PreparedRun],
    accelerator: Accelerator,
    observer: Observer,
    resume: bool,
    among: tuple[RunFolder | None, Recipe],
) -> list[RunRecord]:
    """The runs of several tasks, or the only one; what is finished already is kept."""
    records, (group, _) = [], among
    for run in runs:
        with _alone(run.folder, accelerator, observer) if group is not None else nullcontext():
            if resume and run.folder.complete:
                observer.announce(f"{run.task.name} is finished already: {run.folder.path}")
                records.append(read_checked(run.folder.path))
                continue
            try:
                records.append(_distill_one(run, accelerator, observer, resume, among))
            except Interrupted as stop:
                line = f"{stop}; go on with: {resume_command([run], group or run.folder)}"
                raise Interrupted(line, stop.signal) from None
    return records


@contextmanager
def _alone(folder: RunFolder, accelerator: Accelerator, observer: Observer) -> Iterator[None]:
    """No other process works in a run's folder; ranks share the lock of the first."""
    if not accelerator.is_main_process:
        yield
        return
    with exclusive(folder.path) as note:
        if note:
            observer.announce(note)
        yield


@contextmanager
def _way_on(folder: RunFolder, runs: Sequence[PreparedRun]) -> Iterator[None]:
    """Say how a run that began goes on when a file could not be written."""
    try:
        yield
    except Unwritten as error:
        way = f"; make room, then: {resume_command(runs, folder)}" if folder.recipe.is_file() else ""
        raise Unwritten(f"{error}{way}") from error


def prepare_all(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[PreparedRun]:
    """Check a recipe's runs, one a task, without writing anything; this is all that a dry run does.

    Raises:
        UsageError: the first thing that is wrong.
    """
    check_device(recipe.train.device, recipe.train.trackers)
    runs = [prepare(one) for one in split_by_task(recipe)]
    for run in runs:
        for name in run.task.metrics:
            check_trusted(name, "metric")
    runs = [replace(run, checks=preflight(run)) for run in runs]
    if len({run.folder.path for run in runs}) < len(runs):
        raise UsageError(f"two tasks of {', '.join(recipe.data.task)} would share a folder: run them one by one")
    if recipe.multi_task.together:
        check_together(runs)
    for run in runs:
        steps = len(plan_mixture(runs).turns) if recipe.multi_task.together else run.steps
        if steps is not None:
            check_steps(steps, run.recipe, run.plan)
    claim_all(runs, recipe, resume, overwrite)
    return [_as_begun(run) for run in runs] if resume else runs


def claim_all(runs: Sequence[PreparedRun], recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Refuse folders that hold something else than what is to be gone on with or overwritten; nothing is changed.

    Raises:
        UsageError: what lies there, and what can be done.
    """
    if len(runs) > 1:
        group = RunFolder(runs[0].folder.path.parent)
        parts = [run.folder for run in runs]
        if not (resume and all(part.complete for part in parts)):
            claim(group, recipe.with_changes(out=str(group.path)), resume, overwrite, parts=parts)
    for run in runs:
        claim(run.folder, run.recipe, resume, overwrite or (len(runs) > 1 and not resume), run.inputs)


def _as_begun(run: PreparedRun) -> PreparedRun:
    """A run that goes on keeps the precision that it began with, where that is left to kdalign."""
    train = run.recipe.train
    if train.precision != "auto" or not run.folder.recipe.is_file():
        return run
    begun = load_recipe(run.folder.recipe).train.precision
    return replace(run, recipe=run.recipe.with_changes(train={**train.model_dump(), "precision": begun}))


def _distill_one(
    run: PreparedRun,
    accelerator: Accelerator,
    observer: Observer,
    resume: bool,
    among: tuple[RunFolder | None, Recipe],
) -> RunRecord:
    """One run; ``among`` others, their folder gets the recipe of all once this one can begin."""
    begun = time.perf_counter()
    ready = open_run(run, accelerator)
    observer = begin_folder(ready, accelerator, observer, resume)
    group, whole = among
    if group is not None and accelerator.is_main_process:
        group.begin_above(whole.dump(), keep=resume)
    loaded = load(ready, accelerator, observer)
    course = build_task(loaded, accelerator, observer, resume)
    start_trackers(accelerator, ready.recipe)
    what = f"{'distilling' if loaded.taught is not None else 'training'} {run.task.name}"
    progress = train(course, ready.recipe.train, accelerator, observer, what, resume)
    for tracker in accelerator.trackers:
        tracker.finish()
    return export_student(loaded, course, progress, accelerator, observer, begun)
