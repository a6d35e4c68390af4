"""One optimizer step: forward and backward over micro-batches, the gradient of all ranks clipped and applied."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdalign.data.batches import Batch
from kdalign.devices import deterministic_on_cpu
from kdalign.errors import RunError
from kdalign.models.dropout import quick_dropout
from kdalign.objective.objective import Objective
from kdalign.objective.terms import Unit
from kdalign.training.diagnostics import UNREACHED, StepViewer, count_step_units
from kdalign.training.diverged import explain_divergence
from kdalign.training.sharded_step import clip_gradients


@contextmanager
def settings_of_steps(device: torch.device, quick: bool = True) -> Iterator[None]:
    """Set torch as training steps want it on this device: on a CPU deterministic, with ``quick_dropout`` if asked."""
    with deterministic_on_cpu(device), quick_dropout(device) if quick else nullcontext():
        yield


class Penalty(Protocol):
    """Penalty of a loss balancer, added to a micro-batch's loss."""

    def __call__(self, parts: Mapping[str, Tensor], *, share: float) -> Tensor | None:
        """Compute the penalty from the terms and the micro-batch's share of the step; None if there is none."""


@dataclass(frozen=True)
class StepResult:
    """Outcome of one optimizer step, over all micro-batches and ranks.

    Attributes:
        loss: the weighted total.
        parts: each term before its weight.
        gradient_norm: before clipping.
        units: what each term was divided by.
        stop: true if any rank was told to stop.
    """

    loss: float
    parts: dict[str, float]
    gradient_norm: float
    units: dict[Unit, float]
    stop: bool


@dataclass(frozen=True)
class Stepper:
    """Takes optimizer steps.

    Attributes:
        viewer: runs the learner and its teacher on micro-batches.
        optimizer: optimizer of the learner's parameters.
        clip: largest norm of the gradient; parameter groups with a ``rate`` other than 1 are not clipped.
    """

    viewer: StepViewer
    optimizer: torch.optim.Optimizer
    clip: float

    def take(
        self,
        objective: Objective,
        batches: Sequence[Batch],
        step: int,
        *,
        stop: bool = False,
        penalty: Penalty | None = None,
    ) -> StepResult:
        """Take one step.

        Args:
            objective: what to minimise.
            batches: this rank's micro-batches.
            step: its number, from 0, which decides the dropout.
            stop: true if this rank was told to stop.
            penalty: trains a loss balancer.

        Raises:
            RunError: no parameter is reached, or the loss or its gradient is not finite; the weights stay as they are.
        """
        wrapped, accelerator = self.viewer.learner, self.viewer.accelerator
        units, stopped = count_step_units(batches, accelerator, stop)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(1 + len(objective.names), device=accelerator.device)
        share = 1 / (len(batches) * accelerator.num_processes)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(wrapped):
                breakdown = objective(self.viewer(batch, step, number), units)
                total = breakdown.total
                if penalty is not None:
                    more = penalty(objective.present_terms(breakdown.parts, units), share=share)
                    total = total if more is None else total + more
                if not total.requires_grad:
                    raise RunError(UNREACHED)
                # DDP and FSDP average gradients over ranks; the objective already divides by all ranks' units.
                accelerator.backward(total * accelerator.num_processes)
            sums += torch.stack([breakdown.total.detach(), *breakdown.parts.values()])
        objective.remember(units)
        norms = clip_gradients(self.optimizer, self.clip, accelerator)
        summed = accelerator.reduce(sums, reduction="sum")
        loss, *values, norm = torch.cat([summed, norms.to(summed).reshape(1)]).tolist()  # one wait for the device
        parts = dict(zip(objective.names, values, strict=True))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise RunError(explain_divergence(wrapped, objective, parts, (loss, norm), step))
        self.optimizer.step()
        return StepResult(loss, parts, norm, units, stopped)
