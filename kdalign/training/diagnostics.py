"""Measurements of a training step: its units, each term's size and gradient, and the parameters that are reached.

Nothing here changes a weight or a running statistic. A measurement sees what the step itself would see: the same rows
with the same dropout.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdalign.alignment.plan import Plan
from kdalign.data.batches import Batch
from kdalign.data.epochs import micro_batches
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import RunError
from kdalign.models.architecture import blocks
from kdalign.models.capture import Activations
from kdalign.models.modes import in_mode, unmoved_statistics
from kdalign.objective.objective import Objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_groups, count_rows, count_units
from kdalign.teachers.base import Teacher
from kdalign.training.learner import Learner

LEAST_SHARE = 0.01
"""Share of the loss below which a term is reported as small."""

Teach = Callable[[Batch], Activations]
"""The teacher's forward: a batch and the activations to capture, to these activations."""


@dataclass(frozen=True)
class StepViewer:
    """Runs learner and teacher on the micro-batches of a step.

    Attributes:
        learner: bare, or wrapped for several ranks.
        teach: the teacher's forward; None if nothing needs it.
        accelerator: device and ranks.
        seed: the run's seed, which decides dropout.
    """

    learner: nn.Module
    teach: Teach | None
    accelerator: Accelerator
    seed: int

    def __call__(self, batch: Batch, step: int, number: int) -> TermInputs:
        """Both models' activations on micro-batch ``number`` of a step, with the dropout that it has there."""
        batch = batch.to(self.accelerator.device)
        torch.manual_seed(_derived_seed(self.seed, step, number, self.accelerator.process_index))
        taught = self.teach(batch) if self.teach is not None else None
        return TermInputs(self.learner(batch.inputs, taught), taught, batch)


def _derived_seed(*numbers: int) -> int:
    """A seed that is a function of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def count_step_units(
    batches: Sequence[Batch], accelerator: Accelerator, stop: bool = False
) -> tuple[dict[Unit, float], bool]:
    """Count a step's units over all ranks; the second value is true if any of them was told to stop."""
    units, rows = count_units(batches), np.array(count_rows(batches))
    counts = torch.tensor([*units.values(), stop, *rows.flat], dtype=torch.float64)
    if accelerator.num_processes > 1:  # alone, nothing waits for the device
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
    summed = counts.tolist()
    sums, stops, all_rows = summed[: len(units)], summed[len(units)], summed[len(units) + 1 :]
    # A group has the rows of all ranks, and each rank counts the whole group in its loss.
    groups = count_groups(np.reshape(all_rows, rows.shape).tolist())
    shared = {unit: number * accelerator.num_processes for unit, number in groups.items()}
    return dict(zip(units, sums, strict=True)) | shared, stops > 0


def measure_terms(viewer: StepViewer, objective: Objective, batches: Sequence[Batch], step: int) -> dict[str, float]:
    """Measure the terms of a step without taking it; only those with something to compare."""
    units, _ = count_step_units(batches, viewer.accelerator)
    sums = torch.zeros(len(objective.names), device=viewer.accelerator.device)
    with torch.no_grad(), unmoved_statistics(viewer.learner):
        for number, batch in enumerate(batches):
            parts = objective(viewer(batch, step, number), units).parts
            sums += torch.stack([parts[name] for name in objective.names])
    objective.remember(None)
    means = dict(zip(objective.names, viewer.accelerator.reduce(sums, reduction="sum").tolist(), strict=True))
    return objective.present_terms(means, units)


def gradient_norms(
    viewer: StepViewer, student: PreTrainedModel, objective: Objective, batch: Batch, step: int
) -> dict[str, float]:
    """Norm of each weighted term's gradient on the last student layer that it reaches, on one micro-batch.

    The term is the micro-batch's own mean, without the other terms; no gradient is kept for the step.
    """
    with unmoved_statistics(viewer.learner):
        inputs = viewer(batch, step, 0)
    layers = [list(layer.parameters()) for layer in blocks(student).values()]
    norms: dict[str, float] = {}
    units = count_units([inputs.batch])
    present = objective.present_terms(dict.fromkeys(objective.names, True), units)
    for name, value in objective.each(inputs, units):
        if name not in present:
            continue  # a gradient of 0 on this micro-batch says nothing about the term
        norms[name] = 0.0
        for parameters in reversed(layers):
            reached = [parameter for parameter in parameters if parameter.requires_grad]
            if not reached or not value.requires_grad:
                continue
            gradients = torch.autograd.grad(value, reached, retain_graph=True, allow_unused=True)
            squares = [float(grad.float().square().sum()) for grad in gradients if grad is not None]
            if squares:
                norms[name] = math.sqrt(sum(squares))
                break
    objective.remember(None)
    return norms


def find_small_shares(weighted: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Find the terms of the last step that are a small share of the loss over these steps; return their shares."""
    if not weighted:
        return {}
    sums = {name: sum(step.get(name, 0.0) for step in weighted) for name in weighted[-1]}
    total = sum(map(abs, sums.values()))
    return {name: value / total for name, value in sums.items() if total > 0 and abs(value) < LEAST_SHARE * total}


UNREACHED = "the objective reaches no trainable part of the student: freeze less of it (train.freeze)"


def freeze_unreached(
    learner: Learner, teach: Teach | None, objective: Objective, encoded: TokenizedSplit, device: torch.device
) -> None:
    """Freeze parameters that no term reaches; DDP would wait for their gradients.

    Such are the head where only features are aligned, and XLNet's weights for segments and masks.

    Raises:
        RunError: no parameter is reached.
    """
    batch = micro_batches(encoded, [0], 0, 1, None)[0].to(device)
    taught = teach(batch) if teach is not None else None
    with in_mode(learner, training=False):  # of one row, batch norm may have no variance
        breakdown = objective(TermInputs(learner(batch.inputs, taught), taught, batch), count_units([batch]))
        balance = learner.balance
        penalty = balance.penalty(breakdown.parts, objective.weights, 1.0) if balance is not None else None
        total = breakdown.total if penalty is None else breakdown.total + penalty
        if not total.requires_grad:
            raise RunError(UNREACHED)
        total.backward()  # type: ignore[no-untyped-call]
    objective.remember(None)
    for parameter in learner.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def layer_attention(
    plan: Plan, learner: Learner, teacher: Teacher, batches: Iterable[Batch], device: torch.device
) -> dict[str, list[list[float]]]:
    """Mean attention of each student layer to each teacher layer, over texts.

    Returns:
        For each stack of the teacher, (student layers, teacher layers); rows sum to 1.
    """
    sums: dict[str, Tensor] = {}
    texts = 0
    with in_mode(learner, training=False), torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            signals = learner(batch.inputs, teacher(batch, learner.wanted_of_teacher))
            texts += len(batch.counted)
            for layer_map in plan.maps:
                rows = torch.stack([signals.shares[mean].sum(0) for _, mean, _ in plan.pairs_of(layer_map)])
                stack = layer_map.teacher_stack
                sums[stack] = sums.get(stack, torch.zeros_like(rows)) + rows
    return {stack: (total / texts).tolist() for stack, total in sums.items()}
