"""Memory of a training step on one micro-batch, counted on tensors of shapes alone."""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.data.batches import Batch
from kdalign.files import size_text
from kdalign.models.architecture import blocks, count_parameters
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
    BUCKETS = "gradients' copies for all ranks"
    GATHERED = "gathered layers"
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


@dataclass(frozen=True)
class GatheredBytes:
    """Bytes of the whole weights that one rank holds at a time while a model is sharded by its layers.

    What is in no layer (embeddings, head, norms) stays gathered from the model's first layer to its last; a layer is
    gathered while the one before it still computes, as torch's ``fully_shard`` does.

    Attributes:
        outside: weights outside the layers.
        layer: weights of the largest layer.
    """

    outside: int
    layer: int

    @property
    def in_forward(self) -> int:
        """What is outside the layers, the layer that computes and the next one."""
        return self.outside + 2 * self.layer

    @property
    def in_backward(self) -> int:
        """The same, a layer's gradients, and their copy on its way to the ranks that keep them."""
        return self.in_forward + 2 * self.layer


def gathered_bytes(model: PreTrainedModel, size: int) -> GatheredBytes:
    """Count what is gathered of a model that is sharded by its layers, with ``size`` bytes a weight."""
    layers = [count_parameters(block) for block in dict.fromkeys(blocks(model).values())]
    return GatheredBytes(size * (count_parameters(model) - sum(layers)), size * max(layers))


@dataclass(frozen=True)
class Gathering:
    """How a sharded step gathers weights.

    Attributes:
        ranks: processes among which they are divided.
        student: what is gathered of the student.
        teacher: what is gathered of the teachers.
        heads: bytes of the teachers' vocabulary heads, which losses read until the end of the backward pass.
    """

    ranks: int
    student: GatheredBytes
    teacher: GatheredBytes
    heads: int


@dataclass(frozen=True)
class StepKind:
    """What a step does beside computing on one micro-batch.

    Attributes:
        accumulates: true if gradients of an earlier micro-batch are there.
        computes: true if the teacher computes in the step; false if its outputs are read from a cache.
        gathering: how weights are gathered; None if each rank has all of them.
    """

    accumulates: bool
    computes: bool
    gathering: Gathering | None = None


def trace_step(
    trace: MemoryTrace, learner: Learner, teacher: Teacher | None, objective: Objective, batch: Batch, kind: StepKind
) -> StepMemory:
    """Count what lives at a time in the teacher's forward, the student's, the objective and the backward pass.

    Args:
        trace: follows the step; the teacher's weights are known to it, and neither model has storage.
        learner: what is trained.
        teacher: None if the objective needs none.
        objective: what is minimised.
        batch: the micro-batch.
        kind: what else the step does.
    """
    units, gathered = count_units([batch]), kind.gathering or Gathering(1, GatheredBytes(0, 0), GatheredBytes(0, 0), 0)
    trace.skip(*learner.parameters(), *learner.buffers())
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    with trace.mode, trace, _sharded_gradients(learner, kind.gathering) as freed:
        trace.part = MemoryPart.GRADIENTS
        kept = sum(parameter.nbytes for parameter in trained) if kind.gathering is not None else 0
        rows = trace.hold(kept // gathered.ranks)
        if kind.accumulates and kind.gathering is None:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        trace.part = MemoryPart.GATHERED
        heads, theirs = trace.hold(gathered.heads), trace.hold(gathered.teacher.in_forward - gathered.heads)
        trace.part = MemoryPart.TEACHER_ACTIVATIONS
        taught = teacher(batch, learner.wanted_of_teacher) if teacher is not None else None
        del theirs
        if not kind.computes:
            trace.forget_peak()
        trace.part = MemoryPart.GATHERED
        ours = trace.hold(gathered.student.in_forward)
        trace.part = MemoryPart.ACTIVATIONS
        view = TermInputs(learner(batch.inputs, taught), taught, batch)
        trace.part = MemoryPart.LOSS
        total = objective(view, units).total
        trace.part = MemoryPart.GATHERED
        more = trace.hold(gathered.student.in_backward - gathered.student.in_forward)
        trace.part = MemoryPart.GRADIENTS
        total.backward()  # type: ignore[no-untyped-call]
        del more
        trace.part = MemoryPart.GATHERED
        more = trace.hold(_gradient_bytes(trained) if kind.gathering is not None else 0)  # of what is in no layer
        del rows, heads, ours, more
    objective.remember(None)
    reached = sum(freed) + _gradient_bytes(trained)
    return StepMemory({MemoryPart(part): size for part, size in trace.peak.items() if size}, reached)


def _gradient_bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)


@contextmanager
def _sharded_gradients(learner: Learner, gathering: Gathering | None) -> Iterator[list[int]]:
    """Free a layer's gradients once they are complete, as they go to the ranks that keep them; list their bytes."""
    freed: list[int] = []

    def free(parameter: Tensor) -> None:
        assert parameter.grad is not None, "it is complete"
        freed.append(parameter.grad.nbytes)
        parameter.grad = None

    layers = dict.fromkeys(blocks(learner.student).values()) if gathering is not None else {}
    inner = {parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad}
    handles = [parameter.register_post_accumulate_grad_hook(free) for parameter in inner]  # type: ignore[no-untyped-call]
    try:
        yield freed
    finally:
        for handle in handles:
            handle.remove()


def trace_scoring(trace: MemoryTrace, learner: Learner, batch: Batch) -> int:
    """Count the most bytes that live at a time while the student reads a batch and nothing is kept for a backward."""
    trace.skip(*learner.parameters(), *learner.buffers())
    device, order = learner.student.device.type, learner.order
    with trace.mode, trace, torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=learner.bf16):
        trace.part = MemoryPart.ACTIVATIONS
        forward(learner.student, batch.inputs, CaptureSpec(), order)
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
        phases: bytes by part in every phase.
    """

    phase: str
    parts: Mapping[MemoryPart, int]
    needed: int
    missing: str = ""
    phases: Mapping[str, Mapping[MemoryPart, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        first, *rest = heapq.nlargest(2, self.parts, key=self.parts.__getitem__)
        most = ", ".join(f"{part} {size_text(self.parts[part])}" for part in (first, *rest))
        about = f"about {size_text(self.total)} ({self.missing})" if self.missing else size_text(self.total)
        return f"{about} at most, in {self.phase}: {most}"
