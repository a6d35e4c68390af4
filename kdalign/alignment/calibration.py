"""Measure, on a few texts before training, the variance of the teacher's features and the similarity of layers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.alignment.layer_maps import Alike
from kdalign.alignment.plan import Plan
from kdalign.alignment.projections import Projections, first_weight
from kdalign.alignment.propose import remap_plan
from kdalign.alignment.similarity import LEAST_TOKENS, similarities
from kdalign.data.batches import Batch
from kdalign.data.epochs import sample_batches
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import UsageError
from kdalign.models.architecture import Layer, blocks, split_stack, stack_of_teacher
from kdalign.models.capture import Activations, CaptureSpec, capture, inference_mode, on_common_grid
from kdalign.models.inputs import accepted_inputs
from kdalign.models.sharding import gathered

CALIBRATION_TOKENS = 16_384
"""Number of tokens on which the variance of the teacher's features is measured."""
SIMILARITY_TOKENS = 4_096
"""Number of tokens on which the similarity of layers is measured."""
TeacherCapture = Callable[[Batch, CaptureSpec], Activations]
"""Gives a teacher's activations on a batch, at the student's positions."""
UNTRAINED = "the student is untrained: how similar its layers are says nothing about what they will learn"


def calibrate(
    plan: Plan, teach: TeacherCapture, batches: Iterable[Batch], device: torch.device, *, every: bool = False
) -> Plan:
    r"""Measure each mapped teacher layer's feature variance over real tokens, and store it in the plan.

    .. math:: \sigma_l^2 = \frac{1}{d} \sum_j \mathrm{Var}_{b,i}\, h^t_{l,b,i,j}

    The scale of the Euclidean term; constant features (outlier dimensions with a large mean) do not enter it. With
    ``every``, all layers of the aligned stacks are measured, since they may be mapped later.
    """
    layers = frozenset(plan.teaching)
    if every:
        layers = frozenset(layer for stack, _ in plan.stacks for layer in stack.all_layers)
    sums: dict[Layer, list[Tensor]] = {}
    counts: dict[Layer, int] = {}
    for batch in batches:
        batch = batch.to(device)
        signals = teach(batch, CaptureSpec(hidden=layers, answers=False))
        for layer, hidden in signals.hidden.items():
            real = hidden[_positions(plan, batch, layer.stack)].double()
            counts[layer] = counts.get(layer, 0) + len(real)
            found = sums.setdefault(layer, [torch.zeros(()), torch.zeros(())])
            found[0] = found[0] + real.sum(0).cpu()
            found[1] = found[1] + real.square().sum(0).cpu()
    statistics = {}
    for layer, (first, second) in sums.items():
        count = counts[layer]
        variance = float((second / count - (first / count).square()).mean())
        # A layer that gives every token the same features has no scale of its own.
        statistics[f"variance/{layer}"] = max(variance, 1e-6)
    return plan.with_statistics(statistics)


def measure_layer_map(
    plan: Plan,
    teachers: Sequence[PreTrainedModel],
    student: PreTrainedModel,
    encoded: TokenizedSplit,
    special: Sequence[int],
    texts: str,
    seed: int,
) -> Plan:
    """Measure the similarities of layers on a few texts, and update the plan's map if it depends on them.

    Args:
        plan: its map may be provisional.
        teachers: read without gradients, in eval mode, like the student.
        student: reads the texts' tokens.
        encoded: texts to sample from.
        special: ids of special tokens, which do not count.
        texts: name of the texts, for the reader.
        seed: seed of the sample.
    """
    batches = list(sample_batches(encoded, seed, SIMILARITY_TOKENS))
    alike_layers, tokens = measure_similarities(plan, teachers, student, batches, special, student.device)
    return remap_plan(plan, alike_layers, f"{tokens:,} tokens of {texts}")


def measure_similarities(
    plan: Plan,
    teachers: Sequence[PreTrainedModel],
    student: PreTrainedModel,
    batches: Iterable[Batch],
    special: Sequence[int],
    device: torch.device,
) -> tuple[dict[str, Alike], int]:
    """Measure the CKA of each student layer with each teacher layer, for every aligned stack; and count the tokens.

    Args:
        plan: aligned stacks.
        teachers: read without gradients, in eval mode, like the student.
        student: reads the texts' tokens.
        batches: batches of texts.
        special: ids of special tokens, which do not count.
        device: device of all models.

    Raises:
        UsageError: fewer tokens than an estimate needs.
    """
    student_features, features_of_teachers = _collect_features(plan, student, teachers, batches, special, device)
    by_stack = {}
    for stack, name in sorted({(theirs.name, ours.name) for theirs, ours in plan.stacks}):
        ours = [rows for layer, rows in sorted(student_features.items()) if layer.stack == name]
        theirs = [rows for layer, rows in sorted(features_of_teachers.items()) if layer.stack == stack]
        if len(ours[0]) < LEAST_TOKENS:
            raise UsageError(f"the texts hold {len(ours[0])} tokens: too few to compare layers by")
        if not all(bool(rows.isfinite().all()) for rows in (*ours, *theirs)):
            raise UsageError(f"a model's {stack} gives numbers that are not finite: its layers cannot be compared")
        by_stack[stack] = similarities(ours, theirs)
    return by_stack, len(ours[0])


def start_projections(
    projections: Projections,
    plan: Plan,
    teachers: Sequence[PreTrainedModel],
    student: PreTrainedModel,
    batches: Iterable[Batch],
    device: torch.device,
) -> None:
    """Initialise projections as the plan's style says, fitted to all models' features of some texts."""
    ours, theirs = _collect_features(plan, student, teachers, batches, (), device)
    for shape in plan.projections:
        pairs = [(shape.student, shape.teacher)]
        if shape.style.shared:
            stacks = shape.student.stack, shape.teacher.stack
            pairs = [pair[:2] for pair in plan.pairs if (pair[0].stack, pair[1].stack) == stacks]
        sides = torch.cat([ours[pair[0]] for pair in pairs]), torch.cat([theirs[pair[1]] for pair in pairs])
        given, wanted = sides if shape.style.side == "student" else sides[::-1]
        scaled = shape.style.kind != "orthogonal"
        projections.start(shape, first_weight(shape.style.start, given, wanted, scaled).to(device))


def _collect_features(
    plan: Plan,
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    batches: Iterable[Batch],
    special: Sequence[int],
    device: torch.device,
) -> tuple[dict[Layer, Tensor], dict[Layer, Tensor]]:
    """Collect the features of every layer, (tokens, width), of student and teachers, at counted positions.

    Every teacher reads all rows, whoever teaches them, so that positions are those which all of them have.
    """
    stacks = {stack.name for pair in plan.stacks for stack in pair}
    kept: tuple[dict[Layer, list[Tensor]], ...] = ({}, {})
    for batch in batches:
        batch = replace(batch.to(device), taught_by=None)
        for features, hidden_states in zip(kept, _capture_all(student, teachers, batch), strict=True):
            for layer, hidden in hidden_states.items():
                if layer.stack in stacks:
                    real = hidden[_positions(plan, batch, layer.stack, special)].float().cpu()
                    features.setdefault(layer, []).append(real)
    ours, theirs = ({layer: torch.cat(parts) for layer, parts in features.items()} for features in kept)
    return ours, theirs


def _capture_all(
    student: PreTrainedModel, teachers: Sequence[PreTrainedModel], batch: Batch
) -> tuple[dict[Layer, Tensor], dict[Layer, Tensor]]:
    """Capture the hidden states of the student and of its teachers, at the student's positions."""
    theirs: dict[Layer, Tensor] = {}
    for number, teacher in enumerate(teachers):
        read = batch.read_by(number)
        signals = _features(teacher, read.teacher_inputs)
        signals = signals if read.matching is None else signals.moved(read.matching)
        theirs |= {
            Layer(stack_of_teacher(number, layer.stack), layer.number): hidden
            for layer, hidden in signals.hidden.items()
        }
    return _features(student, batch.inputs).hidden, theirs


def _features(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Activations:
    body = model.base_model
    if model.config.is_encoder_decoder and "decoder_input_ids" not in inputs:  # it teaches features of sounds alone
        body = model.get_encoder()
    wanted = CaptureSpec(hidden=frozenset(blocks(model)))
    with gathered(model), inference_mode(body), capture(model, wanted) as signals:
        body(**accepted_inputs(body, inputs))
    return on_common_grid(signals, model, inputs)


def _positions(plan: Plan, batch: Batch, stack: str, special: Sequence[int] = ()) -> Tensor:
    """(batch, time), counted positions of a stack without special tokens."""
    if plan.pooled:
        return batch.paired[:, None]
    name = split_stack(stack)[1]
    if plan.student.family == "dual" and name == "vision":
        return batch.patches
    target = plan.student.reads_target(name)
    counted, ids = (batch.answered, "decoder_input_ids") if target else (batch.compared, "input_ids")
    if ids not in batch.inputs:  # sounds and images have no special tokens
        return counted
    return counted & ~torch.isin(batch.inputs[ids], torch.tensor(special, dtype=torch.long, device=counted.device))
