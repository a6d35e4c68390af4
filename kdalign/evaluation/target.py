"""The interface of what can be scored: a local model, a served model, a baseline."""

import re
from collections.abc import Sequence
from typing import Protocol

import torch

from kdalign.evaluation.job import EvalJob, OutputPaths
from kdalign.evaluation.result import EvaluationResult, MissingMetric
from kdalign.observer import Observer


class Target(Protocol):
    """One model, or a baseline in place of one, with the split to score it on."""

    @property
    def name(self) -> str:
        """Name as the user gave it."""

    @property
    def job(self) -> EvalJob:
        """Split and settings of the evaluation."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Names of the metrics if the user gives none."""

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Return why the target cannot be scored by a metric; None if it can."""

    def measure(
        self, metrics: Sequence[str], output: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Score the target by supported metrics.

        Args:
            metrics: names of metrics.
            output: paths of its files.
            device: device to run on.
            observer: shows progress.
        """


def file_stem(name: str) -> str:
    """Turn a target's name into a part of a file's name."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")
