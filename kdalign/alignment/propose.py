"""Propose a plan, and update it by measured similarities."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kdalign.alignment.layer_maps import LEARNED, MEASURED, TOP, Alike, is_measured_map, measured_strategy
from kdalign.alignment.plan import (
    LayerMap,
    Plan,
    ProjectionStyle,
    describe_stacks,
    normalise_weights,
    projection_shapes,
    relation_heads_for,
)
from kdalign.errors import UsageError
from kdalign.models.architecture import Architecture, split_stack
from kdalign.models.layer_selection import STRATEGIES, choose_layers


def progressive_plans(plan: Plan, share: float) -> tuple[tuple[float, Plan], ...]:
    """Divide a plan into parts that add one student layer at a time from the bottom, each with its beginning.

    The parts divide the given share of the steps equally; the last one, with all layers, lasts until the end. After
    FitNets (Romero et al. 2015, arXiv:1412.6550), whose lower half is taught first, and the stacked distillation of
    Aguilar et al. 2020, arXiv:1910.03723.

    Raises:
        UsageError: the lowest layers have weights of 0.
    """
    parts = plan.depth if share else 1
    try:
        return tuple(
            (share * number / parts, plan.bottom(number + 1) if number + 1 < parts else plan) for number in range(parts)
        )
    except UsageError as error:
        raise UsageError(f"align.grow begins with the lowest layers: {error}") from None


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan in addition to its layer map.

    Attributes:
        weights: lambda_l for each pair of every stack, in any positive scale; or a word of ``recipe.LAYER_WEIGHTS``.
        heads: comparison of attention maps: ``each``, ``mean``, ``mix``, or ``auto``.
        relations: ``values``, or ``all`` of queries, keys and values.
        relation_heads: number of relation heads; the largest accepted one up to the teacher's heads if None.
        style: style of projections.
        pooled: compare averages over time of what a teacher of text reads and of what its student hears.
    """

    weights: Sequence[float] | str = "uniform"
    heads: Literal["auto", "each", "mean", "mix"] = "auto"
    relations: Literal["values", "all"] = "values"
    relation_heads: int | None = None
    style: ProjectionStyle = ProjectionStyle()
    pooled: bool = False


def propose(
    teacher: Architecture,
    student: Architecture,
    choice: str = "auto",
    cut_from: Mapping[str, Sequence[int]] | None = None,
    options: PlanOptions = PlanOptions(),
) -> Plan:
    """Propose the plan that aligns a student with a teacher, from their architectures alone.

    Args:
        teacher: the teacher's architecture, or that of several (``join_teachers``).
        student: the student's architecture.
        choice: ``auto`` (for a student with more layers than its teacher, those of the same depth), a strategy of
            ``STRATEGIES``, ``top`` (the last layers alone), pairs such as ``0:1 1:3 2:5``, or a measured map: ``cka``,
            ``emd`` or a function of the user's (``module:name``), for which layers of the same depth stand in; or
            ``learned``, every student layer with all teacher layers, to which it attends.
        cut_from: layers of the (first) teacher that the student was cut from, by stack; ``auto`` takes them.
        options: weights, heads, relations and projections.

    Raises:
        UsageError: a choice that is unknown or out of range.
    """
    _check_choice(choice, options)
    maps, choices = [], dict[int, str]()
    for theirs in teacher.stacks:
        number, name = split_stack(theirs.name)
        name = student.stacks[0].name if options.pooled else name  # what hears comes first
        if name in {stack.name for stack in student.stacks}:
            ours = student.stack(name)
            cut = None if cut_from is None or number else cut_from[ours.name]
            pairs, choices[number] = _pairs_by(choice, ours.layers, theirs.layers, cut)
            maps.append(LayerMap(ours.name, theirs.name, tuple(pairs), normalise_weights(options.weights, pairs)))
    first = next(iter(choices.values()), "")
    unlike = [f"teacher {number + 1}: {way}" for number, way in choices.items() if way != first]
    if not maps:
        raise UsageError(f"{describe_stacks(teacher)} and {describe_stacks(student)} have no stack in common to align")
    attended = choice == LEARNED
    projections = projection_shapes(teacher, student, maps, options.style, attended)
    style, pooled = options.style, options.pooled
    plan = Plan(teacher, student, tuple(maps), projections, style=style, attended=attended, pooled=pooled)
    if is_measured_map(choice) and choice not in MEASURED:  # a user's function fails before the run begins
        _measured_maps(
            plan, choice, {theirs.name: _depth_similarity(ours.layers, theirs.layers) for theirs, ours in plan.stacks}
        )
    same = all(theirs.heads == ours.heads for theirs, ours in plan.stacks)
    return replace(
        plan,
        chosen="; ".join([first, *unlike, *([POOLED] if pooled else [])]),
        choice=choice if is_measured_map(choice) else "",
        heads=options.heads if options.heads != "auto" else "each" if same else "mix",
        relations=options.relations,
        relation_heads=_relation_heads(plan, options.relation_heads),
        weighting=_WEIGHTINGS.get(str(options.weights), "static"),
    )


POOLED = "features are averaged over time and compared across modalities"
"""What a plan says of the features of a teacher of text and of its student of sounds."""
_WEIGHTINGS: Mapping[str, Literal["learned", "adaptive"]] = {"learned": "learned", "adaptive": "adaptive"}
"""Words of layer weights that change during training."""


def _check_choice(choice: str, options: PlanOptions) -> None:
    """Refuse an unknown function, and options that a map does not take."""
    if is_measured_map(choice):
        measured_strategy(choice)
        if options.weights != "uniform":
            raise UsageError(f"map {choice!r} has weights lambda_l of its own: leave align.weights at uniform")
    style = options.style
    if choice == LEARNED and (options.weights != "uniform" or style.start != "random" or style.side != "student"):
        raise UsageError(
            "map 'learned' mixes teacher layers for each student layer: it takes align.weights=uniform and "
            "align.start=random with align.side=student alone"
        )


Pairs = list[tuple[int, int]]
"""(student layer, teacher layer) of one stack."""


def _pairs_by(choice: str, student: int, teacher: int, cut: Sequence[int] | None) -> tuple[Pairs, str]:
    """Pairs of one stack, and how they were chosen, for the reader.

    Args:
        choice: the layer map, as in ``propose``.
        student: number of its layers.
        teacher: number of its layers.
        cut: teacher layers that the student was cut from.
    """
    if choice == "auto":
        if cut is not None:
            return list(enumerate(cut)), "the layers that the student was cut from"
        if student > teacher:
            return _same_depth(student, teacher), "layers of the same depth"
        choice = "uniform"
    if is_measured_map(choice):
        return _same_depth(student, teacher), f"{choice}, not measured yet"
    if choice == LEARNED:
        pairs = [(ours, theirs) for ours in range(student) for theirs in range(teacher)]
        return pairs, "learned: each student layer attends to all teacher layers"
    if choice == TOP:
        return [(student - 1, teacher - 1)], "the last layers alone"
    if ":" in choice:
        return _parse_pairs(choice), "given"
    words = ("auto", TOP, *MEASURED, LEARNED, "pairs such as 0:1 1:3")
    return list(enumerate(choose_layers(choice, student, teacher, words))), choice


def _same_depth(student: int, teacher: int) -> Pairs:
    return [(i, (2 * i + 1) * teacher // (2 * student)) for i in range(student)]


def _parse_pairs(choice: str) -> Pairs:
    words = re.split(r"[ ,]+", choice.strip())
    if not all(re.fullmatch(r"[0-9]{1,9}:[0-9]{1,9}", word) for word in words):
        raise UsageError(f"map {choice!r}: pairs are written STUDENT:TEACHER, such as '0:1 1:3 2:5'")
    return [(int(left), int(right)) for left, _, right in (word.partition(":") for word in words)]


def _relation_heads(plan: Plan, number: int | None) -> int:
    """The given number of relation heads, or the largest accepted one up to the teacher's heads."""
    accepted = relation_heads_for(plan.stacks)
    if number is None:
        return max(heads for heads in accepted if heads <= plan.stacks[0][0].heads)
    if number not in accepted:
        shown = ", ".join(map(str, accepted))
        raise UsageError(f"{number} relation heads do not divide the models' widths (accepted: {shown})")
    return number


def _depth_similarity(student: int, teacher: int) -> Alike:
    """Provisional similarity that falls with the distance in depth, (student layers, teacher layers)."""
    ours, theirs = (np.arange(1, layers + 1) / layers for layers in (student, teacher))
    alike: Alike = 1 - np.abs(ours[:, None] - theirs)
    return alike


def remap_plan(plan: Plan, similarities: Mapping[str, Alike], source: str) -> Plan:
    """Store similarities in a plan, and map its layers by them if its map is a measured one.

    Args:
        plan: its maps may be provisional.
        similarities: CKA (student layers, teacher layers) of each aligned stack of the teacher.
        source: name of the texts that they were measured on, for the reader.

    Raises:
        UsageError: a user's function that gives no map.
    """
    kept = {name: tuple(tuple(row) for row in alike.tolist()) for name, alike in similarities.items()}
    if not plan.choice:
        return replace(plan, similarities=kept)
    maps = _measured_maps(plan, plan.choice, similarities)
    return replace(
        plan,
        maps=maps,
        projections=projection_shapes(plan.teacher, plan.student, maps, plan.style, plan.attended),
        chosen=f"{plan.choice} by similarity (CKA) over {source}",
        similarities=kept,
        statistics={},
    )


def map_similarities(plan: Plan) -> dict[str, float]:
    """Compute the mean CKA of each map's pairs, weighted by lambda_l and averaged over stacks.

    For the plan's own map, and for every fixed and shipped measured one; empty if nothing was measured.
    """
    if not plan.similarities:
        return {}
    means = {"this map": _mean_similarity(plan.maps, plan.similarities)}
    if all(ours.layers <= theirs.layers for theirs, ours in plan.stacks):
        for name in STRATEGIES:
            means[name] = _mean_similarity(propose(plan.teacher, plan.student, name).maps, plan.similarities)
    measured = {name: np.array(alike) for name, alike in plan.similarities.items()}
    return means | {
        name: _mean_similarity(_measured_maps(plan, name, measured), plan.similarities) for name in MEASURED
    }


def _measured_maps(plan: Plan, choice: str, similarities: Mapping[str, Alike]) -> tuple[LayerMap, ...]:
    maps = []
    for one in plan.maps:
        try:
            flows = measured_strategy(choice)(similarities[one.teacher_stack])
            pairs = tuple((int(ours), int(theirs)) for ours, theirs, _ in flows)
        except Exception as error:  # a user's function may raise anything
            raise UsageError(
                f"map {choice!r} failed ({type(error).__name__}: {error}); accepted is a function that gives "
                f"(student layer, teacher layer, weight) for each pair"
            ) from error
        try:
            weights = normalise_weights([weight for *_, weight in flows], pairs)
            maps.append(LayerMap(one.student_stack, one.teacher_stack, pairs, weights))
        except UsageError as error:
            raise UsageError(f"map {choice!r}: {error}") from None
    return tuple(maps)


def _mean_similarity(maps: Sequence[LayerMap], similarities: Mapping[str, Sequence[Sequence[float]]]) -> float:
    means = [
        sum(
            weight * similarities[one.teacher_stack][ours][theirs]
            for (ours, theirs), weight in zip(one.pairs, one.weights, strict=True)
        )
        for one in maps
    ]
    return sum(means) / len(means)
