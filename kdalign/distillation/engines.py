"""Where the runs of an ablation are made: in processes on this machine, or on the nodes of a cluster."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdalign.distillation.worker_pool import WorkerPool
from kdalign.observer import Observer
from kdalign.runs.ablation_spec import Trial


class Pool(AbstractContextManager["Pool"], Protocol):
    """Places at which trials run; a context manager that ends what still runs."""

    @property
    def size(self) -> int:
        """Number of trials that can run at a time now."""

    def give(self, trial: Trial) -> None:
        """Start a trial, or resume it."""

    def poll(self, seconds: float) -> list[tuple[Trial, str]]:
        """Wait for trials to end, at most this long; each comes with the reason why it failed, or an empty one.

        The folder of a trial that did not fail is then on this machine.
        """

    def cancel(self, trial: Trial) -> None:
        """Stop one trial, which then ends with a reason; one that trains saves its state first."""

    def stop(self) -> None:
        """Stop all trials, as ``cancel`` does."""


@dataclass(frozen=True)
class PoolSettings:
    """Settings of a pool that runs the trials of an ablation.

    Attributes:
        most: largest number of trials at a time that can be of use.
        out: folder of the ablation.
        keep_students: false if run folders are removed once their results are archived.
        run_observer: makes the observer of a single run, where that runs.
        announce: receives a line for what the user should know.
    """

    most: int
    out: Path
    keep_students: bool
    run_observer: Callable[[], Observer]
    announce: Callable[[str], None]


class Engine(Protocol):
    """Runs trials somewhere."""

    def check(self, trials: Iterable[Trial]) -> None:
        """Check that trials can run, before anything is written.

        Raises:
            UsageError: what is missing, and where.
        """

    def open(self, settings: PoolSettings) -> Pool:
        """Make a pool."""


@dataclass(frozen=True)
class LocalEngine:
    """Runs trials in processes on this machine, which divide its cores.

    Attributes:
        jobs: number of trials at a time.
    """

    jobs: int = 1

    def check(self, trials: Iterable[Trial]) -> None:
        """Check nothing: the trials are prepared on this machine anyway."""

    def open(self, settings: PoolSettings) -> WorkerPool:
        """Make a pool of processes, which start with their first trials."""
        return WorkerPool(max(1, min(self.jobs, settings.most)), settings.run_observer)
