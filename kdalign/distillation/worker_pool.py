"""Processes that distill, one run after another each.

Workers are forks of a server that has loaded the libraries once for all, which takes seconds of a core.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

from kdalign.errors import KdalignError, RunError, Unwritten
from kdalign.files import append_text
from kdalign.observer import Observer
from kdalign.recipe import Recipe, validate_recipe
from kdalign.registry import Trust, trust, trusting
from kdalign.runs.ablation_spec import Trial
from kdalign.runs.folder import RunFolder

_DEAD = "its process ended"


class WorkerPool:
    """Workers that run trials; a context manager that ends them.

    Attributes:
        size: largest number of workers; cores are divided among them.
    """

    def __init__(self, size: int, run_observer: Callable[[], Observer]) -> None:
        """Start no process yet.

        Args:
            size: largest number of workers.
            run_observer: makes the observer of a run, in its worker.
        """
        self.size = size
        self._run_observer = run_observer
        self._workers: dict[Connection, _Worker] = {}
        self._stopped = False

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.end()

    def give(self, trial: Trial) -> None:
        """Let a free worker run a trial; start one if none is free.

        Raises:
            RunError: no process can be started.
        """
        import torch

        free = next((worker for worker in self._workers.values() if worker.trial is None), None)
        if free is None:
            free = _Worker.start(max(1, torch.get_num_threads() // self.size), self._run_observer)
            self._workers[free.connection] = free
        free.give(trial)

    def poll(self, seconds: float) -> list[tuple[Trial, str]]:
        """Wait for trials to end, at most this long; each comes with the reason why it failed, or an empty one."""
        ended = []
        for connection in wait(list(self._workers), timeout=seconds):
            assert isinstance(connection, Connection)
            worker = self._workers[connection]
            trial, reason = worker.trial, worker.answer()
            worker.trial = None
            if reason == _DEAD or worker.told:  # one that was told to stop may have been between two runs
                del self._workers[connection]
                worker.end()
            if trial is not None:
                ended.append((trial, reason))
        return ended

    def cancel(self, trial: Trial) -> None:
        """Tell the worker of a trial to stop; a run that trains saves its state first."""
        for worker in self._workers.values():
            if worker.trial == trial:
                worker.told = True
                worker.process.terminate()

    def stop(self) -> None:
        """Tell all workers once to stop; a run that trains saves its state first."""
        if not self._stopped:
            self._stopped = True
            for worker in self._workers.values():
                worker.process.terminate()


@dataclass
class _Worker:
    """A process that runs one trial after another."""

    process: BaseProcess
    connection: Connection
    trial: Trial | None = None
    told: bool = False

    @classmethod
    def start(cls, threads: int, run_observer: Callable[[], Observer]) -> "_Worker":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["kdalign.distillation.pipeline"])
        ours, theirs = context.Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        arguments = (theirs, environment, threads, run_observer, trust().silent)
        process = context.Process(target=_work, args=arguments, daemon=True)
        try:
            process.start()
        except (EOFError, OSError) as error:  # the server from which workers are forked
            raise RunError(
                f"the process that starts the workers was ended while it loaded ({type(error).__name__}), as where "
                f"memory runs out; the same command resumes"
            ) from None
        theirs.close()
        return cls(process, ours)

    def give(self, trial: Trial) -> None:
        self.trial = trial
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended, which its answer says
            self.connection.send(trial.recipe.model_dump(mode="json"))

    def answer(self) -> str:
        """The reason why a run failed; empty if it did not."""
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
    run_observer: Callable[[], Observer],
    trusted: Trust,
) -> None:
    """Worker loop: distill the recipes that arrive until the pipe closes."""
    os.setsid()  # Ctrl-C reaches the parent alone, which tells its workers once
    os.environ.update(environment)  # the fork server has the environment of its start
    threading.Thread(target=_follow_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            recipe = validate_recipe(connection.recv())
        except (EOFError, KeyboardInterrupt):
            return
        reason = run_recipe(recipe, run_observer, trusted)
        with suppress(BrokenPipeError):  # the parent has ended
            connection.send(reason)


def run_recipe(recipe: Recipe, run_observer: Callable[[], Observer], trusted: Trust) -> str:
    """Distill a recipe, or resume it; return the reason why it failed, or an empty one."""
    from kdalign.distillation.pipeline import distill

    folder = RunFolder(Path(str(recipe.out)))
    try:
        with trusting(trusted):
            distill(recipe, run_observer(), resume=folder.started)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # a finished run is never resumed
    except KdalignError as error:
        return str(error)
    except KeyboardInterrupt:
        return "stopped"
    except Exception as error:
        # Whatever is wrong with one run, the others continue; its log keeps the whole traceback.
        with suppress(OSError, Unwritten):  # the reason counts, whether it can be written or not
            if folder.recipe.is_file():  # else the folder would hold a log alone, and be no run
                append_text(folder.log, traceback.format_exc())
        return f"{type(error).__name__}: {error}"
    return ""


def _follow_parent() -> None:
    """Stop when the parent process ends, for whatever reason; a run that trains saves its state first."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
