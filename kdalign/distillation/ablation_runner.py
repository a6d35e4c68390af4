"""Run an ablation: check all of it, distill what is missing in several processes, and archive each result.

Runs that differ only by arm or seed share their fine-tuned teacher through the cache; two workers never fine-tune the
same one.
"""

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdalign.distillation.engines import Engine, LocalEngine, Pool, PoolSettings
from kdalign.errors import Interrupted, RunError, UsageError
from kdalign.files import check_links, check_writable, remove_drafts
from kdalign.observer import NullObserver, Observer
from kdalign.runs.ablation_spec import (
    KEPT,
    AblationSpec,
    Trial,
    arms_without_cache,
    check_ours,
    check_same,
    remove_ablation,
    write_ablation,
)
from kdalign.runs.archive import ArchivedRun, archive_run, read_archived
from kdalign.runs.folder import RunFolder
from kdalign.runs.locks import exclusive
from kdalign.signals import first_signal

if TYPE_CHECKING:
    from kdalign.teachers.kept import KeptOutputs

LOOK_SECONDS = 1.0
"""Longest time between two reports of progress."""
LEARNT = ("train", "unlabelled", "augmenting", "generation", "teacher", "student", "origins")
"""A run's inputs other than the splits that it is scored on; a later teacher has its number after the word."""


@dataclass
class AblationProgress:
    """Progress of an ablation.

    Attributes:
        done: results, in the order in which runs ended, after those that were there before.
        running: trials under way, by name, each with the time at which it began.
        failed: reason why a trial failed, by its name.
        seconds: how long each run took that ended.
        seconds_left: estimate at the speed so far; None before a run has ended.
    """

    trials: Sequence[Trial]
    done: list[ArchivedRun] = field(default_factory=list)
    running: dict[str, tuple[Trial, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    seconds_left: float | None = None


@dataclass(frozen=True)
class AblationObserver:
    """Receives what happens during an ablation.

    Attributes:
        observer: receives a line for each event.
        run_observer: makes the observer of a single run, in its worker process.
        progress: called whenever something has changed, and each second.
    """

    observer: Observer = field(default_factory=NullObserver)
    run_observer: Callable[[], Observer] = NullObserver
    progress: Callable[[AblationProgress], None] = lambda state: None


def ablate(
    ablation: AblationSpec,
    out: Path,
    watcher: AblationObserver | None = None,
    *,
    engine: Engine = LocalEngine(),
    overwrite: bool = False,
    drop: bool = False,
) -> list[ArchivedRun]:
    """Distill all runs of an ablation that are missing; the same call resumes it after a stop.

    Args:
        ablation: arms, tasks and seeds to compare.
        out: folder of the ablation.
        watcher: receives progress.
        engine: where the runs are made.
        overwrite: replace an ablation in ``out``.
        drop: remove a run's folder, with its student, once its result is archived.

    Raises:
        UsageError: an arm cannot be carried out; nothing was written.
        RunError: runs failed; all others are archived.
        Interrupted: a signal arrived; the same call resumes the runs under way.
    """
    watcher = watcher or AblationObserver()
    archive = out / KEPT
    check_ours(out)
    check_links(out)
    if not overwrite:
        check_same(ablation, out)
    check_writable(out)
    trials = ablation.trials(out)
    earlier = (
        [] if overwrite else [read_archived(trial, archive) for trial in trials if (archive / trial.file).is_file()]
    )
    checked = _check(trials, earlier, overwrite)
    engine.check(trials)
    trials = checked.with_shared_outputs(trials)
    with exclusive(out) as note:
        if note:
            watcher.observer.announce(note)
        if overwrite:
            remove_ablation(out)
        remove_drafts(archive)
        write_ablation(ablation, out)
        state = AblationProgress(trials, list(earlier))
        if earlier:
            watcher.observer.announce(f"{len(earlier)} of {len(trials)} runs are there already")
        done = {result.trial.name for result in earlier}
        todo = [trial for trial in trials if trial.name not in done]
        for line in _notes_before(todo, checked.finetuned):
            watcher.observer.announce(line)
        settings = PoolSettings(len(todo), out, not drop, watcher.run_observer, watcher.observer.announce)
        with first_signal(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as stopped, engine.open(settings) as pool:
            _run_trials(state, todo, _Runs(pool, checked.inputs, archive, drop, watcher), stopped)
    if state.failed:
        lines = "; ".join(f"{name}: {reason}" for name, reason in state.failed.items())
        raise RunError(f"{len(state.failed)} of {len(trials)} runs failed ({lines}); the same command tries them again")
    order = {trial.name: number for number, trial in enumerate(trials)}
    return sorted(state.done, key=lambda result: order[result.trial.name])


def _notes_before(todo: Sequence[Trial], finetuned: Sequence[str]) -> Iterator[str]:
    """Describe the work that the runs share: fine-tuning of the teacher by task, and a cache of its outputs."""
    tasks = [task for task in finetuned if any(trial.task == task for trial in todo)]
    if tasks:
        yield f"the teacher is fine-tuned first, once for all runs, unless it is in the cache: {', '.join(tasks)}"
    yield from arms_without_cache(todo)
    outputs = {word for trial in todo for word in trial.recipe.cache.keep}
    if outputs:
        yield (
            "the teacher's outputs are kept by the first run that needs them, for all that follow: "
            f"{', '.join(sorted(outputs))}"
        )


def check_ablation(ablation: AblationSpec, out: Path, overwrite: bool = False) -> list[Trial]:
    """Check an ablation without writing anything; return its trials.

    Raises:
        UsageError: an arm cannot be carried out, or ``out`` holds something else.
    """
    check_ours(out)
    if not overwrite:
        check_same(ablation, out)
    trials = ablation.trials(out)
    _check(trials, (), overwrite)
    return trials


@dataclass(frozen=True)
class _CheckedArms:
    """Facts about arms, each on each task, from their preparation.

    Attributes:
        inputs: hashes of what is read, by arm and task.
        finetuned: tasks for which the teacher is fine-tuned first.
        outputs: outputs of the teacher that are asked for, by teachers and task, if they are kept.
    """

    inputs: dict[tuple[str, str], dict[str, str]]
    finetuned: list[str]
    outputs: "dict[tuple[tuple[str, ...], str], KeptOutputs]"

    def with_shared_outputs(self, trials: Sequence[Trial]) -> list[Trial]:
        """Let all arms with a cache keep what any of them asks for, so that the teacher reads each row once."""
        shared = []
        for trial in trials:
            kept, cache = self.outputs.get((trial.recipe.teacher_names, trial.task)), trial.recipe.cache
            if kept is not None and cache.folder is not None:
                cache = cache.model_copy(update={"keep": kept.words})
                trial = replace(trial, recipe=trial.recipe.with_changes(cache=cache.model_dump()))
            shared.append(trial)
        return shared


def _check(trials: Sequence[Trial], archived: Sequence[ArchivedRun], overwrite: bool) -> _CheckedArms:
    """Check each arm on each task once, before anything is written.

    Archived results must be of the models and data that are here now, and arms must be scored on the same examples.
    """
    checked = _prepare_arms(trials, archived, overwrite)
    inputs = checked.inputs
    for result in archived:
        now = inputs[result.trial.arm, result.trial.task]
        changed = changed_inputs(result.inputs, now)
        if changed:
            raise UsageError(
                f"the result of {result.trial.name} is of another {changed} than is here now: "
                f"give another --out, or --overwrite"
            )
    scored: dict[str, dict[str, str]] = {}
    for (arm, task), hashes in inputs.items():
        reported = {name: digest for name, digest in hashes.items() if name.partition(" ")[0] not in LEARNT}
        if scored.setdefault(task, reported) != reported:
            raise UsageError(f"arm {arm!r} would be scored on other examples of {task!r} than the arms before it")
    return checked


def changed_inputs(read: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """Name what a run read that differs from what was expected; empty if nothing does."""
    return " and ".join(name for name in expected if read.get(name) != expected[name])


def _prepare_arms(trials: Sequence[Trial], archived: Sequence[ArchivedRun], overwrite: bool) -> _CheckedArms:
    """Prepare each arm on each task once."""
    from kdalign.distillation.pipeline import prepare_all
    from kdalign.distillation.teacher_cache import shareable_outputs

    inputs: dict[tuple[str, str], dict[str, str]] = {}
    finetuned: dict[str, None] = {}
    outputs: dict[tuple[tuple[str, ...], str], KeptOutputs] = {}
    for trial in trials:
        if (trial.arm, trial.task) not in inputs:
            done = any(result.trial == trial for result in archived)  # its run folder is not needed any more
            resume = not (overwrite or done) and RunFolder(Path(str(trial.recipe.out))).started
            try:
                [prepared] = prepare_all(trial.recipe, resume=resume, overwrite=overwrite or done)
            except UsageError as error:
                raise UsageError(f"arm {trial.arm!r}, task {trial.task!r}: {error}") from None
            inputs[trial.arm, trial.task] = prepared.inputs
            finetuned |= dict.fromkeys([trial.task] if prepared.finetunes else [])
            if trial.recipe.cache.folder is not None:
                group, kept = (trial.recipe.teacher_names, trial.task), shareable_outputs(prepared)
                outputs[group] = outputs[group] | kept if group in outputs else kept
    return _CheckedArms(inputs, list(finetuned), outputs)


@dataclass(frozen=True)
class _Runs:
    """Where an ablation's runs are made, and what becomes of their results.

    Attributes:
        inputs: hashes of what is read, by arm and task.
        archive: folder of results.
        drop: true if a run's folder is removed once its result is archived.
    """

    pool: Pool
    inputs: Mapping[tuple[str, str], Mapping[str, str]]
    archive: Path
    drop: bool
    watcher: AblationObserver

    def refusal(self, trial: Trial) -> str:
        """Return why the result of a finished run cannot stand beside the others; empty if it can."""
        expected = self.inputs[trial.arm, trial.task]
        changed = changed_inputs(RunFolder(Path(str(trial.recipe.out))).read_inputs(), expected)
        return f"it read another {changed} than was checked before the runs began" if changed else ""

    def keep(self, trial: Trial) -> ArchivedRun:
        """Archive the result of a finished run."""
        result = archive_run(trial, self.archive)
        if self.drop:
            shutil.rmtree(str(trial.recipe.out))
        return result


def _run_trials(state: AblationProgress, todo: Sequence[Trial], runs: _Runs, stopped: Sequence[int]) -> None:
    """Run trials and archive their results; on a signal, let those under way save their state."""
    waiting, pool, watcher = list(todo), runs.pool, runs.watcher
    while (waiting and not stopped) or state.running:
        if stopped:
            pool.stop()
        while waiting and not stopped and len(state.running) < pool.size:
            trial = waiting.pop(0)
            pool.give(trial)
            state.running[trial.name] = (trial, time.monotonic())
            watcher.progress(state)
        for trial, reason in pool.poll(LOOK_SECONDS):
            _, begun = state.running.pop(trial.name)
            reason = reason or runs.refusal(trial)
            if not reason:
                state.seconds.append(time.monotonic() - begun)
                state.done.append(runs.keep(trial))
                left = len(waiting) + len(state.running) / 2
                state.seconds_left = sum(state.seconds) / len(state.seconds) * left / pool.size
                watcher.observer.announce(_result_line(state, trial))
            elif not stopped:
                state.failed[trial.name] = reason
                watcher.observer.announce(f"failed: {trial.name}: {reason}")
        watcher.progress(state)
    if stopped:
        raise Interrupted(
            f"stopped; {len(state.done)} of {len(state.trials)} runs are kept; the same command resumes", stopped[0]
        )


def _result_line(state: AblationProgress, trial: Trial) -> str:
    """A line for the run that ended last: its number, scores, seconds and an estimate of the time left."""
    scores = next(iter(state.done[-1].record.scores.values()))
    agreement = [{**scores["agreement"], "metric": "agreement"}] if scores["agreement"] else []
    shown = [
        f"{score['metric']} {'undefined' if score['value'] is None else format(score['value'], '.1f')}"
        for score in [*scores["student"], *agreement]
    ]
    left = "" if state.seconds_left is None else f", {_time_left(state.seconds_left)}"
    seconds = state.seconds[-1]
    return f"[{len(state.done)}/{len(state.trials)}] {trial.name}: {', '.join(shown)} ({seconds:.0f} s{left})"


def _time_left(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min left" if seconds >= 60 else "less than a minute left" if seconds else "done"
