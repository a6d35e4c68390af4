"""Looks at terms: what a step counts, what each term is and pulls at, and which parameters are reached at all.

Nothing here changes a weight. A look sees what the step itself would see: the same rows with the same dropout.
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
from kdalign.data.batches import Batch, TokenizedSplit, micro_batches
from kdalign.errors import RunError
from kdalign.models.architecture import blocks
from kdalign.models.capture import Activations
from kdalign.models.teacher import Teacher
from kdalign.objective.objective import Objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_groups, count_rows, count_units
from kdalign.training.learner import Learner

LEAST_SHARE = 0.01
"""Of the loss: a term with less hardly counts, which is said."""

Teach = Callable[[Batch], Activations]
"""The teacher's signals on a batch."""


@dataclass(frozen=True)
class StepViewer:
    """How a step's micro-batches are seen.

    Attributes:
        learner: bare, or wrapped for several ranks.
        teach: None where nothing needs a teacher.
        seed: of the run, for dropout.
    """

    learner: nn.Module
    teach: Teach | None
    accelerator: Accelerator
    seed: int

    def __call__(self, batch: Batch, step: int, number: int) -> TermInputs:
        """Both models' signals on a micro-batch of a step, with the dropout that it has there."""
        batch = batch.to(self.accelerator.device)
        torch.manual_seed(_derived_seed(self.seed, step, number, self.accelerator.process_index))
        taught = self.teach(batch) if self.teach is not None else None
        return TermInputs(self.learner(batch.inputs, taught), taught, batch)


def _derived_seed(*numbers: int) -> int:
    """A seed that is a function of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def count_step_units(
    share: Sequence[Batch], accelerator: Accelerator, stop: bool = False
) -> tuple[dict[Unit, float], bool]:
    """The units of a step over all ranks, and whether any of them was told to stop."""
    units, rows = count_units(share), np.array(count_rows(share))
    counts = torch.tensor([*units.values(), stop, *rows.flat], device=accelerator.device, dtype=torch.float64)
    summed = accelerator.reduce(counts, reduction="sum").tolist()
    sums, stops, together = summed[: len(units)], summed[len(units)], summed[len(units) + 1 :]
    # A group's rows are those of all ranks, each of which takes the whole of it into its loss.
    groups = count_groups(np.reshape(together, rows.shape).tolist())
    shared = {unit: number * accelerator.num_processes for unit, number in groups.items()}
    return dict(zip(units, sums, strict=True)) | shared, stops > 0


def measure_terms(see: StepViewer, objective: Objective, share: Sequence[Batch], step: int) -> dict[str, float]:
    """The terms of a step that is not taken, those that had something to look at."""
    units, _ = count_step_units(share, see.accelerator)
    sums = torch.zeros(len(objective.names), device=see.accelerator.device)
    with torch.no_grad():
        for number, batch in enumerate(share):
            parts = objective(see(batch, step, number), units).parts
            sums += torch.stack([parts[name] for name in objective.names])
    objective.remember(None)
    means = dict(zip(objective.names, see.accelerator.reduce(sums, reduction="sum").tolist(), strict=True))
    return objective.present_terms(means, units)


def gradient_norms(
    see: StepViewer, student: PreTrainedModel, objective: Objective, batch: Batch, step: int
) -> dict[str, float]:
    """The norm of each weighted term's gradient on the last of the student's layers that it reaches, on a micro-batch.

    Of the micro-batch's own mean, without the other terms; nothing of it is kept for the step.
    """
    view = see(batch, step, 0)
    layers = [list(layer.parameters()) for layer in blocks(student).values()]
    norms: dict[str, float] = {}
    units = count_units([view.batch])
    there = objective.present_terms(dict.fromkeys(objective.names, True), units)
    for name, value in objective.each(view, units):
        if name not in there:
            continue  # it pulls at nothing here, which says nothing of it
        norms[name] = 0.0
        for parameters in reversed(layers):
            reached = [each for each in parameters if each.requires_grad]
            if not reached or not value.requires_grad:
                continue
            found = torch.autograd.grad(value, reached, retain_graph=True, allow_unused=True)
            squares = [float(each.float().square().sum()) for each in found if each is not None]
            if squares:
                norms[name] = math.sqrt(sum(squares))
                break
    objective.remember(None)
    return norms


def find_small_shares(weighted: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The terms of the last step whose share of the loss, over these steps, is small; their shares."""
    if not weighted:
        return {}
    sums = {name: sum(step.get(name, 0.0) for step in weighted) for name in weighted[-1]}
    whole = sum(map(abs, sums.values()))
    return {name: value / whole for name, value in sums.items() if whole > 0 and abs(value) < LEAST_SHARE * whole}


def freeze_unreached(
    learner: Learner, teach: Teach | None, objective: Objective, encoded: TokenizedSplit, device: torch.device
) -> None:
    """Freeze parameters that no term reaches, for each of which DDP would wait.

    Such are the head where only features are aligned, and XLNet's weights for segments and masks.
    """
    batch = micro_batches(encoded, [0], 0, 1, None)[0].to(device)
    taught = teach(batch) if teach is not None else None
    view = TermInputs(learner(batch.inputs, taught), taught, batch)
    found = objective(view, count_units([batch]))
    more = learner.balance.penalty(found.parts, objective.weights, 1.0) if learner.balance is not None else None
    total = found.total if more is None else found.total + more
    if not total.requires_grad:
        raise RunError(
            "no part of the student that is trained is reached by what is minimised: train.freeze less of it"
        )
    total.backward()  # type: ignore[no-untyped-call]
    objective.remember(None)
    for parameter in learner.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def layer_attention(
    plan: Plan, learner: Learner, teacher: Teacher, batches: Iterable[Batch], device: torch.device
) -> dict[str, list[list[float]]]:
    """How much each student layer attends to each teacher layer, the mean over texts.

    Returns:
        For each stack of the student, (student layers, teacher layers); rows sum to 1.
    """
    sums: dict[str, Tensor] = {}
    texts = 0
    was_training = learner.training
    learner.eval()
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            signals = learner(batch.inputs, teacher(batch, learner.wanted_of_teacher))
            texts += len(batch.counted)
            for one in plan.maps:
                rows = torch.stack([signals.shares[ours].sum(0) for ours, _, _ in plan.pairs_of(one)])
                sums[one.student_stack] = sums.get(one.student_stack, torch.zeros_like(rows)) + rows
    learner.train(was_training)
    return {stack: (total / texts).tolist() for stack, total in sums.items()}
