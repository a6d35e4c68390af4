"""Who watches a run, and what is told of each step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ProgressCallback = Callable[[int, int], None]
"""Told how much is done, and of how much."""


def no_progress(done: int, total: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, for progress bars and the history.

    Attributes:
        loss: the weighted total over all micro-batches and ranks.
        parts: each term before its weight.
        weights: of the terms in this step, where they change on the way; else empty.
        layers: of terms whose layers' weights lambda_l change on the way, those in this step.
        temperature: in this step, where it changes on the way.
        samples_per_second: since training started or went on, without evaluation and checkpoints.
        tokens_per_second: real tokens, likewise.
        seconds_left: at this speed.
        task: whose batch it was, where several share a student; else empty.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    parts: dict[str, float]
    weights: dict[str, float]
    lr: float
    gradient_norm: float
    samples_per_second: float
    tokens_per_second: float
    seconds_left: float
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    temperature: float | None = None
    task: str = ""


class Observer(Protocol):
    """Who watches: a progress bar, plain lines, a log file."""

    def announce(self, line: str) -> None:
        """Something the user should know."""

    def started(self, what: str, step: int, steps: int) -> None:
        """Training starts or goes on after ``step``."""

    def stepped(self, report: StepReport) -> None:
        """One step is done."""

    def ended(self) -> None:
        """Training is over."""

    def progress(self, what: str) -> ProgressCallback:
        """Something else is under way: a function to tell how much of how much is done, to be called to the end."""

    def into(self, log: Path) -> "Observer":
        """The same observer, its announcements also written to a run's log."""


class NullObserver:
    """Nobody watches."""

    def announce(self, line: str) -> None:
        """Say nothing."""

    def started(self, what: str, step: int, steps: int) -> None:
        """Show nothing."""

    def stepped(self, report: StepReport) -> None:
        """Show nothing."""

    def ended(self) -> None:
        """Show nothing."""

    def progress(self, what: str) -> ProgressCallback:
        """Show nothing."""
        return no_progress

    def into(self, log: Path) -> Observer:
        """Still nobody."""
        return self
