"""Measure a training loop from outside: its steps by the optimizer's, its tokens by what the student reads.

The same meter is in every peer's process, and needs nothing of kdalign but the clock of all processes.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.machine import Moment, peak_gib


@dataclass(frozen=True)
class Job:
    """What a peer's process is to measure.

    Attributes:
        variant: which of the peer's ways to train.
        teacher: folder of the teacher.
        student: folder of the student, cut from the teacher.
        data: folder with ``train.parquet`` and ``validation.parquet``.
        scratch: folder for what is written, kept from turn to turn.
        seed: seed of the order of rows and of dropout; another one in each turn.
        warm_up: steps before the clock starts.
        least: steps that are timed at least.
        seconds: seconds that are timed at least.
        accuracy_steps: steps after which the student is scored; 0 for no score.
        accuracy_seconds: seconds of training after which it is scored, too.
    """

    variant: str
    teacher: str
    student: str
    data: str
    scratch: str
    seed: int
    warm_up: int
    least: int
    seconds: float
    accuracy_steps: int = 0
    accuracy_seconds: float = 0.0

    @classmethod
    def read(cls) -> "Job":
        """Read the job from the command line."""
        return cls(**json.loads(sys.argv[1]))


class Enough(Exception):
    """All is measured: ends a loop that its library owns."""


class Counts:
    """Rows and real tokens that a model has read, counted before each forward."""

    def __init__(self, model: nn.Module) -> None:
        """Count what this model reads from now on."""
        self.samples, self.tokens = 0, 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if model.training:
            mask = (named or given[0])["attention_mask"]  # sentence-transformers gives its features as one dictionary
            self.samples += len(mask)
            self.tokens += int(mask.sum())

    def __call__(self) -> tuple[int, int]:
        """Return samples and tokens so far."""
        return self.samples, self.tokens


class Meter:
    """Times the steps after those that warm up, then scores the student when it is due, then ends the training."""

    def __init__(
        self, job: Job, counts: Callable[[], tuple[int, int]], accuracy: Callable[[], float] | None = None
    ) -> None:
        """Begin to measure; the time to the first scores counts from here.

        Args:
            job: what to measure.
            counts: samples and real tokens trained on so far.
            accuracy: scores the student; None for no score.
        """
        self.job, self.counts, self.accuracy = job, counts, accuracy if job.accuracy_steps else None
        self.steps, self.speed, self.scores = 0, None, {}
        self._started: tuple[Moment, tuple[int, int]] | None = None
        self._begun, self._scoring = Moment.now(), 0.0

    def run(self, loop: Callable[[], object]) -> None:
        """Run a loop that its library owns, with every optimizer's step counted."""
        handle = register_optimizer_step_post_hook(lambda *_: self.stepped())
        try:
            loop()
        except Enough:
            pass
        finally:
            handle.remove()
        assert self.speed is not None, "the loop ended before all was measured"

    def stepped(self) -> None:
        """Count a step that has ended.

        Raises:
            Enough: all is measured.
        """
        self.steps += 1
        if self._started is None:
            if self.steps == self.job.warm_up:
                self._started = Moment.now(), self.counts()
            return
        if self.speed is None:
            self._time()
        if self.speed is not None and self._all_scored():
            raise Enough

    def _time(self) -> None:
        assert self._started is not None
        now, (start, before), timed = Moment.now(), self._started, self.steps - self.job.warm_up
        if timed < self.job.least or now.wall - start.wall < self.job.seconds:
            return
        samples, tokens = (after - earlier for after, earlier in zip(self.counts(), before, strict=True))
        self.speed = {
            "steps": timed, "samples": samples, "tokens": tokens, "seconds": now.wall - start.wall,
            "cpu_seconds": now.own - start.own, "gib": peak_gib(), "other_cores": start.other_cores(now),
        }  # fmt: skip

    def _all_scored(self) -> bool:
        if self.accuracy is None:
            return True
        now = Moment.now().wall
        seconds = now - self._begun.wall - self._scoring
        for name, due in (
            ("after_steps", self.steps >= self.job.accuracy_steps),
            ("after_seconds", seconds >= self.job.accuracy_seconds),
        ):
            if due and name not in self.scores:
                self.scores[name] = {"accuracy": self.accuracy(), "steps": self.steps, "seconds": seconds}
        self._scoring += Moment.now().wall - now
        return len(self.scores) == 2

    def tell(self, precision: str, **more: object) -> None:
        """Print what was measured, and by which torch, as the process's last line."""
        found = {**(self.speed or {}), **self.scores, "precision": precision, "torch": torch.__version__, **more}
        print(json.dumps(found))
