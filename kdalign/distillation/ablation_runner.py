"""The story of an ablation: check all of it, run what is not there yet, in several processes, and keep what each gives.

A worker is a process that makes one run after another. Workers are forks of a server that has loaded the libraries,
which takes seconds of a core, once for all. Runs that differ by arm or seed share their fine-tuned teacher through the
cache; two workers never make the same one.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from kdalign.errors import Interrupted, KdalignError, RunError, Unwritten, UsageError
from kdalign.files import append_text, check_links, check_writable
from kdalign.observer import NullObserver, Observer
from kdalign.recipe import validate_recipe
from kdalign.registry import Trust, trust, trusting
from kdalign.runs.ablation_spec import (
    KEPT,
    LOCK,
    AblationSpec,
    Trial,
    check_ours,
    check_same,
    remove_ablation,
    write_ablation,
)
from kdalign.runs.archive import ArchivedRun, archive_run, read_archived
from kdalign.runs.folder import RunFolder
from kdalign.runs.locks import exclusive
from kdalign.signals import first_signal

LOOK_SECONDS = 1.0
LEARNT = ("train", "unlabelled", "augmenting", "teacher", "student")
"""A run's inputs, beside the splits that it is scored on."""


@dataclass
class AblationProgress:
    """How far an ablation is, for those who watch.

    Attributes:
        done: what is kept, in the order of the trials.
        running: trials under way, with the time at which they began.
        failed: trials that ended otherwise, with the reason.
        seconds_left: at the speed so far; None before one has ended.
    """

    trials: Sequence[Trial]
    done: list[ArchivedRun] = field(default_factory=list)
    running: dict[str, tuple[Trial, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds_left: float | None = None


def ablate(
    ablation: AblationSpec,
    out: Path,
    observer: Observer | None = None,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    drop: bool = False,
    watch: Callable[[], Observer] = NullObserver,
    tell: Callable[[AblationProgress], None] = lambda state: None,
) -> list[ArchivedRun]:
    """Make all runs of an ablation that are not there yet; the same call goes on after a stop.

    Args:
        ablation: what to compare.
        out: its folder.
        observer: told what happens to the ablation.
        jobs: runs at a time; cores are divided among them.
        overwrite: put it in the place of what lies in ``out``.
        drop: remove a run's folder, with its student, once its result is kept.
        watch: makes whoever watches a single run, in its worker.
        tell: called whenever something has changed, and each second.

    Raises:
        UsageError: an arm cannot be carried out; nothing was written.
        RunError: runs failed; all others are kept.
        Interrupted: a signal arrived; what was under way goes on where it was.
    """
    observer = observer or NullObserver()
    kept = out / KEPT
    check_ours(out)
    check_links(out)
    if not overwrite:
        check_same(ablation, out)
    check_writable(out)
    trials = ablation.trials(out)
    here = [] if overwrite else [read_archived(trial, kept) for trial in trials if (kept / trial.file).is_file()]
    finetuned = _check(trials, here, overwrite)
    with exclusive(out, LOCK) as note:
        if note:
            observer.announce(note)
        if overwrite:
            remove_ablation(out)
        write_ablation(ablation, out)
        state = AblationProgress(trials, list(here))
        if here:
            observer.announce(f"{len(here)} of {len(trials)} runs are there already")
        done = {one.trial.name for one in here}
        todo = [trial for trial in trials if trial.name not in done]
        tasks = [task for task in finetuned if any(trial.task == task for trial in todo)]
        if tasks:
            observer.announce(
                f"the teacher is fine-tuned first, once for all, unless it is in the cache: {', '.join(tasks)}"
            )
        _run_all(state, todo, kept, max(1, min(jobs, len(todo))), drop, observer, watch, tell)
    if state.failed:
        lines = "; ".join(f"{name}: {reason}" for name, reason in state.failed.items())
        raise RunError(f"{len(state.failed)} of {len(trials)} runs failed ({lines}); the same command tries them again")
    order = {trial.name: number for number, trial in enumerate(trials)}
    return sorted(state.done, key=lambda one: order[one.trial.name])


def check_ablation(ablation: AblationSpec, out: Path, overwrite: bool = False) -> list[Trial]:
    """Check an ablation without writing anything; its trials."""
    check_ours(out)
    if not overwrite:
        check_same(ablation, out)
    trials = ablation.trials(out)
    _check(trials, (), overwrite)
    return trials


def _check(trials: Sequence[Trial], kept: Sequence[ArchivedRun], overwrite: bool) -> list[str]:
    """Each arm on each task once: what is refused is refused before anything is written.

    What is kept must be of the models and data that are here now, and arms must be scored on the same examples.

    Returns:
        The tasks for which the teacher is fine-tuned first.
    """
    from kdalign.distillation.pipeline import prepare_all

    inputs: dict[tuple[str, str], dict[str, str]] = {}
    finetuned: dict[str, None] = {}
    for trial in trials:
        if (trial.arm, trial.task) not in inputs:
            there = any(one.trial == trial for one in kept)  # its run folder is not needed any more
            resume = not (overwrite or there) and RunFolder(Path(str(trial.recipe.out))).started
            try:
                [prepared] = prepare_all(trial.recipe, resume=resume, overwrite=overwrite or there)
            except UsageError as error:
                raise UsageError(f"arm {trial.arm!r}, task {trial.task!r}: {error}") from None
            inputs[trial.arm, trial.task] = prepared.inputs
            finetuned |= dict.fromkeys([trial.task] if prepared.finetunes else [])
    for one in kept:
        now = inputs[one.trial.arm, one.trial.task]
        changed = [name for name in now if one.inputs.get(name) != now[name]]
        if changed:
            raise UsageError(
                f"the result of {one.trial.name} is of another {' and '.join(changed)} than is here now: "
                f"give another --out, or --overwrite"
            )
    scored: dict[str, dict[str, str]] = {}
    for (arm, task), found in inputs.items():
        reported = {name: print_ for name, print_ in found.items() if name not in LEARNT}
        if scored.setdefault(task, reported) != reported:
            raise UsageError(f"arm {arm!r} would be scored on other examples of {task!r} than the arms before it")
    return list(finetuned)


def _run_all(
    state: AblationProgress,
    todo: Sequence[Trial],
    kept: Path,
    jobs: int,
    drop: bool,
    observer: Observer,
    watch: Callable[[], Observer],
    tell: Callable[[AblationProgress], None],
) -> None:
    import torch

    waiting, spent, told = list(todo), list[float](), False
    workers: dict[Connection, _Worker] = {}
    with first_signal(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as stopped:
        try:
            while (waiting and not stopped) or state.running:
                if stopped and not told:
                    told = True
                    for worker in workers.values():
                        worker.process.terminate()  # a run that trains saves where it is
                while waiting and not stopped and len(state.running) < jobs:
                    free = next((one for one in workers.values() if one.trial is None), None)
                    if free is None:
                        free = _Worker.started(max(1, torch.get_num_threads() // jobs), watch)
                        workers[free.connection] = free
                    trial = waiting.pop(0)
                    free.give(trial)
                    state.running[trial.name] = (trial, time.monotonic())
                    tell(state)
                for connection in wait(list(workers), timeout=LOOK_SECONDS):
                    assert isinstance(connection, Connection)
                    worker = workers[connection]
                    ended, reason = worker.trial, worker.answer()
                    if reason == _DEAD:
                        del workers[connection]
                    if ended is None:
                        continue
                    worker.trial = None
                    _, begun = state.running.pop(ended.name)
                    if stopped and reason:
                        continue
                    if reason:
                        state.failed[ended.name] = reason
                        observer.announce(f"failed: {ended.name}: {reason}")
                        continue
                    spent.append(time.monotonic() - begun)
                    state.done.append(archive_run(ended, kept))
                    if drop:
                        shutil.rmtree(str(ended.recipe.out))
                    left = len(waiting) + len(state.running) / 2
                    state.seconds_left = sum(spent) / len(spent) * left / jobs
                    observer.announce(_line(state, ended, spent[-1]))
                tell(state)
        finally:
            for worker in workers.values():
                worker.end()
    if stopped:
        raise Interrupted(
            f"stopped; {len(state.done)} of {len(state.trials)} runs are kept; the same command goes on", stopped[0]
        )


def _line(state: AblationProgress, trial: Trial, seconds: float) -> str:
    last = state.done[-1].record
    scores = next(iter(last.scores.values()))
    told = [*scores["student"], *([{**scores["agreement"], "metric": "agreement"}] if scores["agreement"] else [])]
    shown = [f"{s['metric']} {'undefined' if s['value'] is None else format(s['value'], '.1f')}" for s in told]
    left = "" if state.seconds_left is None else f", {_left(state.seconds_left)}"
    return f"[{len(state.done)}/{len(state.trials)}] {trial.name}: {', '.join(shown)} ({seconds:.0f} s{left})"


def _left(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min left" if seconds >= 60 else "less than a minute left" if seconds else "done"


_DEAD = "its process ended"


@dataclass
class _Worker:
    """A process that makes one run after another."""

    process: BaseProcess
    connection: Connection
    trial: Trial | None = None

    @classmethod
    def started(cls, threads: int, watch: Callable[[], Observer]) -> "_Worker":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["kdalign.distillation.pipeline"])
        ours, theirs = context.Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        process = context.Process(target=_work, args=(theirs, environment, threads, watch, trust().silent), daemon=True)
        try:
            process.start()
        except (EOFError, OSError) as error:  # the server from which workers are forked
            raise RunError(
                f"the process that starts the workers was ended while it loaded ({type(error).__name__}), as where "
                f"memory runs out; the same command goes on"
            ) from None
        theirs.close()
        return cls(process, ours)

    def give(self, trial: Trial) -> None:
        self.trial = trial
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended, which its answer says
            self.connection.send(trial.recipe.model_dump(mode="json"))

    def answer(self) -> str:
        """Why a run failed; empty where it did not."""
        try:
            return str(self.connection.recv())
        except (EOFError, ConnectionResetError):
            return _DEAD

    def end(self) -> None:
        if self.trial is not None and self.process.is_alive():
            self.process.terminate()
        self.connection.close()
        self.process.join()


def _work(
    connection: Connection,
    environment: Mapping[str, str],
    threads: int,
    watch: Callable[[], Observer],
    trusted: Trust,
) -> None:
    """Make the runs that are asked for until nobody asks."""
    os.setsid()  # Ctrl-C is for the one that watches; it tells its workers once
    os.environ.update(environment)  # the server's is that of its start
    threading.Thread(target=_follow, daemon=True).start()
    import torch

    from kdalign.distillation.pipeline import distill

    torch.set_num_threads(threads)
    while True:
        try:
            recipe = validate_recipe(connection.recv())
        except (EOFError, KeyboardInterrupt):
            return
        folder = RunFolder(Path(str(recipe.out)))
        try:
            with trusting(trusted):
                distill(recipe, watch(), resume=folder.started)
            shutil.rmtree(folder.checkpoints, ignore_errors=True)  # nothing is left to go on with
            reason = ""
        except KdalignError as error:
            reason = str(error)
        except KeyboardInterrupt:
            reason = "stopped"
        except Exception as error:
            # Whatever is wrong with one run, the others go on; its log keeps the whole of it.
            with suppress(OSError, Unwritten):  # the reason counts, whether it can be kept or not
                folder.path.mkdir(parents=True, exist_ok=True)
                append_text(folder.log, traceback.format_exc())
            reason = f"{type(error).__name__}: {error}"
        with suppress(BrokenPipeError):  # nobody watches any more
            connection.send(reason)


def _follow() -> None:
    """Stop with the one that watches, whatever ended it; a run that trains saves where it is."""
    watching = multiprocessing.parent_process()
    assert watching is not None, "a worker has one"
    watching.join()
    os.kill(os.getpid(), signal.SIGTERM)
