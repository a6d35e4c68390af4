"""Observers of a run: announcements, steps, progress."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ProgressCallback = Callable[[int, int], None]
"""Progress callback: (done, total)."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, for progress bars and the history.

    Attributes:
        loss: weighted total over all micro-batches and ranks.
        parts: value of each term before its weight.
        weights: weights of the terms in this step, if they change during training; else empty.
        layers: weights lambda_l of layers in this step, by term, if they change during training.
        temperature: temperature in this step, if it changes during training.
        samples_per_second: speed since training started or resumed, without evaluation and checkpoints.
        tokens_per_second: the same in real tokens.
        steps: number of steps of the run; an estimate where a budget of tokens decides.
        seconds_left: estimate at this speed.
        tokens_left: tokens that are still to be trained; None where the number of steps decides.
        passes: passes over a stream that have begun; 0 for data that is held as a whole.
        task: the batch's task, if several share a student; else empty.
        on_policy: measures of the student's own texts in an on-policy step, by name; else empty.
        alarms: signs of collapse in them, by name.
        sampled_per_second: tokens that the student samples per second of sampling; 0 without on-policy steps.
        trained_per_second: real tokens per second of training without sampling; 0 without on-policy steps.
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
    on_policy: Mapping[str, float] = field(default_factory=dict)
    alarms: Sequence[str] = ()
    sampled_per_second: float = 0.0
    trained_per_second: float = 0.0
    tokens_left: int | None = None
    passes: int = 0


class Observer(Protocol):
    """Observer of a run, such as a progress bar, plain lines, or a log file."""

    def announce(self, line: str) -> None:
        """Show a line that the user should know."""

    def started(self, what: str, step: int, steps: int, tokens: int | None = None) -> None:
        """Start training, or resume it after ``step``; if ``tokens`` are to be trained, ``steps`` is an estimate."""

    def stepped(self, report: StepReport) -> None:
        """Report a finished step."""

    def ended(self) -> None:
        """End training."""

    def progress(self, what: str) -> ProgressCallback:
        """Start other work, and return the callback for its progress, to be called until all is done."""

    def into(self, log: Path) -> "Observer":
        """Return the same observer, which also writes its announcements to a run's log."""


class NullObserver:
    """Observer that shows nothing."""

    def announce(self, line: str) -> None:
        """Show nothing."""

    def started(self, what: str, step: int, steps: int, tokens: int | None = None) -> None:
        """Show nothing."""

    def stepped(self, report: StepReport) -> None:
        """Show nothing."""

    def ended(self) -> None:
        """Show nothing."""

    def progress(self, what: str) -> ProgressCallback:
        """Show nothing."""
        return no_progress

    def into(self, log: Path) -> Observer:
        """Return itself."""
        return self
