"""Memory of a training step on one micro-batch, counted on tensors of shapes alone."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch

from kdalign.data.batches import Batch
from kdalign.files import size_text
from kdalign.models.architecture import accepted_inputs
from kdalign.models.capture import CaptureSpec, forward
from kdalign.models.memory_trace import MemoryTrace
from kdalign.objective.objective import Objective
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.teachers.base import Teacher
from kdalign.training.learner import Learner


class MemoryPart(StrEnum):
    """Parts of a run's memory."""

    BASE = "Python and libraries"
    TEACHER = "teacher"
    MAPPED = "teacher's file, mapped"
    STUDENT = "student"
    MOMENTS = "optimizer's moments"
    GRADIENTS = "gradients and backward pass"
    ACTIVATIONS = "student's activations"
    TEACHER_ACTIVATIONS = "teacher's activations"
    LOSS = "losses"
    HEAP = "gaps in the heap"


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step beside weights and moments.

    Attributes:
        parts: bytes by part when most are in use.
        trained: bytes of all gradients in float32, which are there when the optimizer steps.
        scoring: bytes of the student's activations while it is scored.
    """

    parts: dict[MemoryPart, int]
    trained: int
    scoring: int = 0


def trace_step(
    trace: MemoryTrace,
    learner: Learner,
    teacher: Teacher | None,
    objective: Objective,
    batch: Batch,
    *,
    accumulates: bool,
    computes: bool,
) -> StepMemory:
    """Count what lives at a time in the teacher's forward, the student's, the objective and the backward pass.

    Args:
        trace: follows the step; the teacher's weights are known to it, and neither model has storage.
        learner: what is trained.
        teacher: None if the objective needs none.
        objective: what is minimised.
        batch: the micro-batch.
        accumulates: true if gradients of an earlier micro-batch are there.
        computes: true if the teacher computes in the step; false if its outputs are read from a cache.
    """
    units = count_units([batch])
    trace.skip(*learner.parameters(), *learner.buffers())
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    with trace.mode, trace:
        trace.part = MemoryPart.GRADIENTS
        for parameter in trained if accumulates else ():
            parameter.grad = torch.zeros_like(parameter)
        trace.part = MemoryPart.TEACHER_ACTIVATIONS
        taught = teacher(batch, learner.wanted_of_teacher) if teacher is not None else None
        if not computes:
            trace.forget_peak()
        trace.part = MemoryPart.ACTIVATIONS
        view = TermInputs(learner(batch.inputs, taught), taught, batch)
        trace.part = MemoryPart.LOSS
        total = objective(view, units).total
        trace.part = MemoryPart.GRADIENTS
        total.backward()  # type: ignore[no-untyped-call]
    objective.remember(None)
    reached = sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None)
    return StepMemory({MemoryPart(part): size for part, size in trace.peak.items() if size}, reached)


def trace_scoring(trace: MemoryTrace, learner: Learner, batch: Batch) -> int:
    """Count the most bytes that live at a time while the student reads a batch and nothing is kept for a backward."""
    trace.skip(*learner.parameters(), *learner.buffers())
    device, order = learner.student.device.type, learner.order
    with trace.mode, trace, torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=learner.bf16):
        trace.part = MemoryPart.ACTIVATIONS
        forward(learner.student, accepted_inputs(learner.student, batch.inputs), CaptureSpec(), order)
    return sum(trace.peak.values())


@dataclass(frozen=True)
class MemoryPrediction:
    """The most memory that a run is expected to have at a time.

    Attributes:
        phase: when that is.
        parts: bytes by part then.
        needed: most bytes that must be free at a time: neither what the process has already nor pages of a mapped file,
            which are resident and yet the system drops for others.
        missing: how the prediction is rougher than by counting; empty if all was counted.
    """

    phase: str
    parts: Mapping[MemoryPart, int]
    needed: int
    missing: str = ""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        first, *rest = heapq.nlargest(2, self.parts, key=self.parts.__getitem__)
        most = ", ".join(f"{part} {size_text(self.parts[part])}" for part in (first, *rest))
        about = f"about {size_text(self.total)} ({self.missing})" if self.missing else size_text(self.total)
        return f"{about} at most, in {self.phase}: {most}"
