"""A run from start to end: prepare, check, tokenize, load, build, train, export."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

from accelerate import Accelerator

from kdalign.devices import check_device, make_accelerator
from kdalign.distillation.build import build_task
from kdalign.distillation.cache_size import check_cache_room
from kdalign.distillation.export import ExportOptions, export_student
from kdalign.distillation.load import load
from kdalign.distillation.memory import predict_memory
from kdalign.distillation.multitask import check_together, distill_together, plan_mixture
from kdalign.distillation.preflight import preflight
from kdalign.distillation.prepare import PreparedRun, prepare, resume_command
from kdalign.distillation.run_folders import claim, split_by_task
from kdalign.distillation.served_source import add_scores, ask_all, compare_first, with_returned
from kdalign.distillation.teacher_cache import check_cache
from kdalign.distillation.tokenize import begin_folder, open_run
from kdalign.environment import reset_peak_memory
from kdalign.errors import Interrupted, RefusedRun, RunError, Unwritten, UsageError, lost_rank
from kdalign.objective.stages import check_steps
from kdalign.observer import NullObserver, Observer
from kdalign.ranks import rank_and_size
from kdalign.recipe import Recipe, load_recipe
from kdalign.registry import check_trusted, trusting_caller
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import read_whole
from kdalign.runs.locks import exclusive
from kdalign.runs.record import RunRecord
from kdalign.stopwatch import Stopwatch
from kdalign.training.loop import train
from kdalign.training.trackers import start_trackers


def distill(
    recipe: Recipe,
    observer: Observer | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    since: float | None = None,
) -> list[RunRecord]:
    """Distill one student per task of the recipe, or one for all; return each task's record.

    Code that the recipe names (terms, maps and metrics of your own) is imported and run. The command ``kdalign`` does
    so only for names on the command line itself, and for others with ``--allow code``.

    Args:
        recipe: all settings; several tasks get folders below ``out``, named after the task.
        observer: receives progress.
        resume: continue a run of this recipe that stopped; finished tasks are kept.
        overwrite: replace an old run.
        since: reading of ``time.perf_counter`` from which on the run's seconds are counted; None for now.

    Raises:
        UsageError: the recipe cannot be carried out; nothing was written.
        RunError: training failed.
        Interrupted: a signal arrived; ``resume`` continues.
    """
    with trusting_caller():
        return _distill(recipe, observer or NullObserver(), resume, overwrite, Stopwatch("preparing", since))


def _distill(recipe: Recipe, observer: Observer, resume: bool, overwrite: bool, watch: Stopwatch) -> list[RunRecord]:
    runs = prepare_all(recipe, resume=resume, overwrite=overwrite)
    group = RunFolder(runs[0].folder.path.parent) if len(runs) > 1 else None
    together = group if recipe.multi_task.together else None
    accelerator = make_accelerator(recipe.train.device, recipe.train.trackers, (together or runs[0].folder).path)
    folder = group or runs[0].folder
    with (
        _locked(folder, accelerator, observer),
        _withdrawn_if_refused(folder, runs, resume),
        _resume_hint(folder, runs),
    ):
        if accelerator.is_main_process:  # a folder that was free when it was checked may have been taken since
            claim_all(runs, recipe, resume, overwrite)
        if together is not None:
            with ExitStack() as locks:
                for run in runs:
                    locks.enter_context(_locked(run.folder, accelerator, observer))
                records = distill_together(runs, recipe, together, accelerator, observer, resume, watch)
        else:
            records = []
            for run in runs:
                with _locked(run.folder, accelerator, observer) if group is not None else nullcontext():
                    records.append(_distill_task(run, group, recipe, accelerator, observer, resume, watch))
    accelerator.end_training()
    return records


def prepare_all(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[PreparedRun]:
    """Prepare and check a recipe's runs, one per task, without writing anything; a dry run does no more.

    Raises:
        UsageError: the first thing that is wrong.
    """
    check_device(recipe.train.device, recipe.train.trackers)
    runs = [prepare(part) for part in split_by_task(recipe)]
    for run in runs:
        for name in run.task.metrics:
            check_trusted(name, "metric")
        check_cache(run)
    runs = [replace(run, memory=predict_memory(run)) for run in runs]
    runs = [replace(run, findings=preflight(run)) for run in runs]
    if len({run.folder.path for run in runs}) < len(runs):
        raise UsageError(f"two tasks of {', '.join(recipe.data.task)} would share a folder: run them one by one")
    if recipe.multi_task.together:
        check_together(runs)
    for run in runs:
        steps = len(plan_mixture(runs).turns) if recipe.multi_task.together else run.steps
        if steps is not None:
            check_steps(steps, run.recipe, run.plan)
    claim_all(runs, recipe, resume, overwrite)
    return [_with_recorded_precision(run) for run in runs] if resume else runs


def claim_all(runs: Sequence[PreparedRun], recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Refuse folders that hold something else than what is to be resumed or overwritten; nothing is changed.

    Raises:
        UsageError: what a folder holds, and what can be done.
    """
    if len(runs) > 1:
        group = RunFolder(runs[0].folder.path.parent)
        parts = [run.folder for run in runs]
        if not (resume and all(part.complete for part in parts)):
            claim(group, recipe.with_changes(out=str(group.path)), resume, overwrite, parts=parts)
    for run in runs:
        claim(run.folder, run.recipe, resume, overwrite or (len(runs) > 1 and not resume), run.inputs)


def _with_recorded_precision(run: PreparedRun) -> PreparedRun:
    """A resumed run at the precision it began with, if the recipe leaves that to kdalign."""
    train = run.recipe.train
    if train.precision != "auto" or not run.folder.recipe.is_file():
        return run
    recorded = load_recipe(run.folder.recipe).train.precision
    return replace(run, recipe=run.recipe.with_changes(train={**train.model_dump(), "precision": recorded}))


def _distill_task(
    run: PreparedRun,
    group: RunFolder | None,
    recipe: Recipe,
    accelerator: Accelerator,
    observer: Observer,
    resume: bool,
    watch: Stopwatch,
) -> RunRecord:
    """Distill the student of one task; on resume, a finished one is read.

    Args:
        run: the run, prepared and checked.
        group: folder of several tasks, which gets their recipe once this run can begin; None for one task.
        recipe: recipe of all tasks.
        accelerator: device and ranks.
        observer: receives progress.
        resume: continue a run that stopped.
        watch: counts seconds by phase, since the command began or since it finished the task before.
    """
    if resume and run.folder.complete:
        record = read_whole(run.folder.path)
        observer.announce(f"{run.task.name} is finished already: {run.folder.path}")
        return record
    watch.begin("tokenizing")
    reset_peak_memory(accelerator.device)
    ready = open_run(run, accelerator)
    check_cache_room(ready)
    if ready.recipe.asks_server:
        watch.begin("asking the server")
    source = compare_first(ready) if ready.recipe.asks_server else None
    observer = begin_folder(ready, accelerator, observer, resume)
    if group is not None and accelerator.is_main_process:
        group.begin_above(recipe.dump(), keep=resume)
    served = None
    if source is not None:
        served = ask_all(source, accelerator, observer)
        ready = with_returned(ready, source)
    loaded = load(ready, accelerator, observer, watch)
    if source is not None and accelerator.is_main_process:
        add_scores(loaded, source, observer)
    watch.begin("aligning")
    task = build_task(loaded, accelerator, observer, resume, None if served is None else served.teacher)
    what = f"{'distilling' if ready.recipe.has_teacher else 'training'} {run.task.name}"
    watch.begin("training")
    begin = partial(start_trackers, accelerator, ready.recipe)
    progress = train(task, ready.recipe.train, accelerator, observer, what, resume, begin)
    for tracker in accelerator.trackers:
        tracker.finish()
    options = ExportOptions(facts={} if served is None else {"served_teacher": served.all_facts()})
    record = export_student(loaded, task, progress, accelerator, observer, options)
    watch.restart("preparing")
    return record


@contextmanager
def _locked(folder: RunFolder, accelerator: Accelerator, observer: Observer) -> Iterator[None]:
    """Hold an exclusive lock on a run's folder; ranks share the lock of the first."""
    if not accelerator.is_main_process:
        yield
        return
    with exclusive(folder.path) as note:
        if note:
            observer.announce(note)
        yield


@contextmanager
def _withdrawn_if_refused(folder: RunFolder, runs: Sequence[PreparedRun], resume: bool) -> Iterator[None]:
    """Remove what a run has written if it is refused before its first step; finished ones of other tasks stay.

    So do folders that the run has not begun: they are as they were.
    """
    folders = [*(run.folder for run in runs), folder]
    before = {one.path: one.mark for one in folders}
    try:
        yield
    except (RefusedRun, UsageError):
        for one in folders if not resume and rank_and_size()[0] == 0 else ():
            kept = folders if one is folder else [one]  # the folder above stays as long as one of its runs
            if one.mark != before[one.path] and not any(each.complete or each.trained for each in kept):
                one.withdraw() if any(run.folder.path == one.path for run in runs) else one.withdraw_above()
        raise


@contextmanager
def _resume_hint(folder: RunFolder, runs: Sequence[PreparedRun]) -> Iterator[None]:
    """Add the command that resumes a run to its errors: a signal, a lost rank, or a file that could not be written."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(f"{stop}; resume with: {resume_command(runs, folder)}", stop.signal) from None
    except RuntimeError as error:
        lost = lost_rank(error)
        if lost is None:
            raise
        command = resume_command(runs, folder)
        raise RunError(f"another process of this run has ended ({lost}); resume with: {command}") from error
    except Unwritten as error:
        hint = f"; make room, then: {resume_command(runs, folder)}" if folder.recipe.is_file() else ""
        raise Unwritten(f"{error}{hint}") from error
