"""Check that the objective's terms fit the models, the batches and the plan."""

from kdalign.alignment.plan import Plan
from kdalign.environment import world_size
from kdalign.errors import UsageError
from kdalign.models.layouts import AttentionLayout
from kdalign.objective.losses import LEAST_GROUP
from kdalign.objective.objective import Objective
from kdalign.objective.terms import Signal, Unit
from kdalign.recipe import Recipe
from kdalign.teachers.base import Teacher

_UNBLENDED = frozenset({Signal.RELATIONS, Signal.LAYERS, Signal.TEACHER_ATTENTION})
"""Signals that the map ``learned`` does not mix."""


def check_terms(recipe: Recipe, objective: Objective, plan: Plan | None) -> None:
    """Refuse terms that these models, batches or this plan cannot provide."""
    ranks, train = world_size(), recipe.train
    rows = min(train.batch_size, (train.micro_batch or train.batch_size) * ranks)
    grouped = [name for name, (_, term) in objective.terms.items() if term.unit is Unit.GROUP]
    if grouped and rows < LEAST_GROUP and train.batch_tokens is None:
        raise UsageError(
            f"term {grouped[0]!r} compares the texts of a micro-batch with one another: {rows} are too few "
            f"(accepted: {LEAST_GROUP} or more)"
        )
    if Signal.AGAIN in objective.needs and recipe.train.dropout == 0:
        raise UsageError("positives=dropout needs two forwards that differ: leave train.dropout above 0")
    if plan is None:
        return
    needs = objective.needs
    for name, (_, term) in objective.terms.items():
        if plan.attended and term.needs & _UNBLENDED:
            raise UsageError(f"map 'learned' mixes features and attention maps alone: term {name!r} compares others")
    compares_maps = Signal.ATTENTION in needs
    if needs & {Signal.ATTENTION, Signal.TEACHER_ATTENTION, Signal.RELATIONS}:
        check_attention(plan, compares_maps)
    if Signal.EMBEDDINGS in needs:
        _check_embeddings(plan)
    if recipe.align.remap_every is not None:
        _check_remapping(plan, compares_maps)
        if objective.modules:
            name = next(iter(objective.modules))
            raise UsageError(f"align.remap_every changes pairs of layers: term {name!r} would lose its state")


def check_teacher(objective: Objective, teacher: Teacher, plan: Plan | None, samples: bool = False) -> None:
    """Refuse terms that ask for what the teacher cannot give, of texts that the student writes, too, with ``samples``.

    Raises:
        UsageError: the term, what it asks for, and which teacher could give it.
    """
    for request in objective.requests(plan.teaching if plan is not None else (), samples):
        refusal = teacher.refusal(request)
        if refusal is not None:
            raise UsageError(f"term {request.term!r} {refusal}")


def _check_remapping(plan: Plan, compares_maps: bool) -> None:
    """Refuse remapping of a fixed map, or of projections and mixtures for each pair of layers."""
    if not plan.choice:
        raise UsageError(
            f"align.remap_every updates measured maps; map {plan.chosen!r} is fixed: give --map cka or emd"
        )
    if plan.projections and not plan.style.shared:
        raise UsageError("align.remap_every changes pairs of layers: projections need align.shared=true")
    if compares_maps and plan.mixes:
        raise UsageError(
            "align.remap_every changes pairs of layers: heads cannot be mixed (accepted: align.heads=mean)"
        )


def _check_embeddings(plan: Plan) -> None:
    """Refuse to compare embeddings of different widths."""
    for theirs, ours in plan.stacks:
        if theirs.widths or ours.widths:
            raise UsageError(
                f"what the first stage of a pyramid reads cannot be compared ({plan.teacher.model_type} and "
                f"{plan.student.model_type}); give --set objective.embeddings=0"
            )
        if theirs.width != ours.width:
            raise UsageError(
                f"the teacher's embeddings are {theirs.width} wide and the student's {ours.width}: they cannot be "
                f"compared; give --set objective.embeddings=0"
            )


def check_attention(plan: Plan, compares_maps: bool) -> None:
    """Refuse attention that cannot be captured, and head-by-head comparison of different numbers of heads."""
    for architecture in (plan.teacher, plan.student):
        if architecture.attention is AttentionLayout.CLOSED:
            raise UsageError(
                f"attention of {architecture.model_type} cannot be captured; give --delta 0 and objective.relations=0"
            )
    for theirs, ours in plan.stacks:
        if compares_maps and theirs.heads != ours.heads and plan.heads == "each":
            raise UsageError(
                f"the teacher has {theirs.heads} attention heads and the student {ours.heads}: their maps cannot be "
                f"compared head by head (accepted: align.heads=mix, align.heads=mean, --delta 0)"
            )
