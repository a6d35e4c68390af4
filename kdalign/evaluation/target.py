"""What can be scored: the interface of a local model, a served model, a baseline."""

from collections.abc import Sequence
from typing import Protocol

import torch

from kdalign.evaluation.job import EvalJob, OutputPaths
from kdalign.evaluation.result import EvaluationResult, MissingMetric
from kdalign.observer import Observer

AGREEMENT = "agreement"


MASKED = "masked_ppl"


class Target(Protocol):
    """One model, or what stands for one, with the split it is scored on."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def job(self) -> EvalJob:
        """What it is scored on."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """What it is scored by where nobody says."""

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Why it cannot be scored by a metric; None where it can."""

    def measure(
        self, metrics: Sequence[str], place: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Its scores by metrics that it can be scored by.

        Args:
            metrics: names.
            place: for its files.
            device: to run on.
            observer: who watches.
        """
