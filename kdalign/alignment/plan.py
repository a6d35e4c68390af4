"""Alignment plan: pairs of student and teacher layers, with their weights and projections.

Pure data, JSON both ways. Layers count from 0; the embeddings are not a layer.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kdalign.alignment.layer_maps import MEASURED, is_measured_map
from kdalign.alignment.plan_json import check_sizes, first_difference
from kdalign.errors import UsageError, unknown
from kdalign.files import parse_json, read_text
from kdalign.models.architecture import CROSS, Architecture, Layer, Stack, split_stack


@dataclass(frozen=True)
class LayerMap:
    """Pairs of (student layer, teacher layer) between two stacks, each with its weight lambda_l (they sum to 1)."""

    student_stack: str
    teacher_stack: str
    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.pairs) != len(self.weights):
            raise UsageError(f"the map has {len(self.pairs)} pairs of layers but {len(self.weights)} weights lambda_l")
        if len(set(self.pairs)) < len(self.pairs) or not self.pairs:
            raise UsageError("the map must name at least one pair of layers, and none twice")
        if any(weight < 0 for weight in self.weights) or not abs(sum(self.weights) - 1) <= 1e-6:
            raise UsageError(f"the map's weights lambda_l must not be negative and sum to 1, not {self.weights}")


@dataclass(frozen=True)
class ProjectionStyle:
    """Style of projections.

    Attributes:
        kind: ``linear``, ``norm`` (linear and a layer norm), ``mlp`` (two linear maps around a GELU), or ``orthogonal``
            (its rows or columns stay orthonormal).
        side: model whose features are projected to the other's width, ``student`` or ``teacher``.
        shared: one for all pairs of a stack instead of one for each.
        start: initial weights: ``random``, or fitted: ``least-squares``, ``procrustes``, ``pca``.
    """

    kind: Literal["linear", "norm", "mlp", "orthogonal"] = "linear"
    side: Literal["student", "teacher"] = "student"
    shared: bool = False
    start: Literal["random", "least-squares", "procrustes", "pca"] = "random"

    def __post_init__(self) -> None:
        if self.side == "teacher" and self.kind != "orthogonal":
            raise UsageError(
                f"a {self.kind} projection of the teacher's features could learn to give the same for every token "
                f"(accepted: align.projection=orthogonal with align.side=teacher)"
            )
        accepted = STARTS[self.kind]
        if self.start not in accepted:
            raise UsageError(
                f"a {self.kind} projection cannot start from {self.start!r} (accepted: {', '.join(accepted)})"
            )


STARTS: Mapping[str, tuple[str, ...]] = {
    "linear": ("random", "least-squares", "procrustes", "pca"),
    "norm": ("random", "least-squares", "procrustes", "pca"),
    "mlp": ("random",),
    "orthogonal": ("random", "procrustes", "pca"),
}
"""Accepted initialisations of each kind of projection."""


@dataclass(frozen=True)
class ProjectionShape:
    """Shape of a map from one side's width to the other's, for a pair of layers or, if shared, all pairs of a stack."""

    student: Layer
    teacher: Layer
    student_width: int
    teacher_width: int
    style: ProjectionStyle = ProjectionStyle()

    @property
    def ends(self) -> tuple[int, int]:
        """Input and output width."""
        widths = self.student_width, self.teacher_width
        return widths if self.style.side == "student" else widths[::-1]

    @property
    def parameters(self) -> int:
        """Number of weights; linear maps have no bias."""
        into, out = self.ends
        match self.style.kind:
            case "norm":
                return into * out + 2 * out
            case "mlp":
                return (into + out) * max(into, out) + max(into, out) + out
        return into * out


@dataclass(frozen=True)
class HeadMix:
    """Learned mixture of a student layer's heads into as many as its teacher layer has."""

    student: Layer
    teacher: Layer
    student_heads: int
    teacher_heads: int


def mixture_layer(student: Layer, teacher_stack: str) -> Layer:
    """Name the mixture of a teacher stack's layers that a student layer attends to."""
    return Layer(f"{teacher_stack}_all", student.number)


def cross_attention_layer(layer: Layer) -> Layer:
    """Name the cross-attention of a decoder layer, or of a mixture of layers."""
    return Layer(layer.stack.replace("decoder", CROSS), layer.number)


@dataclass(frozen=True)
class Plan:
    """Alignment of a student with its teacher, or with several.

    Of several teachers, ``teacher`` has the stacks of all, named by ``stack_of_teacher``, and each has maps of its own.

    Attributes:
        maps: one per aligned pair of stacks.
        projections: maps for pairs of different widths, in one style; a shared one is named by its stack's first pair.
        statistics: ``variance/STACK.LAYER``, a teacher layer's mean feature variance over real tokens, once calibrated.
        chosen: description of the map's choice, for the reader.
        choice: name of a measured map; empty for a fixed one.
        similarities: CKA of every student layer with every teacher layer, by the teacher's stack, once measured.
        heads: comparison of attention maps: ``each``, ``mean`` or ``mix``.
        relations: compared parts of attention: ``values``, or ``all`` of queries, keys and values.
        relation_heads: number of relation heads.
        style: style of projections.
        attended: true if each student layer is compared with a learned mixture of its map's teacher layers.
        weighting: change of lambda_l during training: ``static`` (none), ``learned`` or ``adaptive``.
        shares: of several teachers, each one's share in the weights of terms that compare layers; empty for one.
        pooled: true if features are averaged over time before they are compared, as of sounds and their transcripts,
            whose positions do not correspond; then stacks of other names are aligned, too.
    """

    teacher: Architecture
    student: Architecture
    maps: tuple[LayerMap, ...]
    projections: tuple[ProjectionShape, ...] = ()
    statistics: Mapping[str, float] = field(default_factory=dict)
    chosen: str = ""
    choice: str = ""
    similarities: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    heads: Literal["each", "mean", "mix"] = "each"
    relations: Literal["values", "all"] = "values"
    relation_heads: int = 1
    style: ProjectionStyle = ProjectionStyle()
    attended: bool = False
    weighting: Literal["static", "learned", "adaptive"] = "static"
    shares: tuple[float, ...] = ()
    pooled: bool = False

    @property
    def mixes(self) -> tuple[HeadMix, ...]:
        """Mixtures of heads that attention maps need, also those of cross-attention."""
        mixes = []
        for one, (theirs, ours) in zip(self.maps, self.stacks, strict=True):
            crossing = self.student.reads_target(one.student_stack)
            pairs = self.pairs_of(one) if self.heads == "mix" and ours.heads != theirs.heads else ()
            mixes += [HeadMix(student, teacher, ours.heads, theirs.heads) for student, teacher, _ in pairs]
            for student, teacher, _ in pairs if crossing else ():
                mixes.append(
                    HeadMix(cross_attention_layer(student), cross_attention_layer(teacher), ours.heads, theirs.heads)
                )
        return tuple(mixes)

    @property
    def stacks(self) -> tuple[tuple[Stack, Stack], ...]:
        """Aligned pairs of stacks, teacher first."""
        return tuple((self.teacher.stack(m.teacher_stack), self.student.stack(m.student_stack)) for m in self.maps)

    def __post_init__(self) -> None:
        if not self.maps:
            raise UsageError("the plan maps no stack")
        if len({(one.student_stack, one.teacher_stack) for one in self.maps}) < len(self.maps):
            raise UsageError("the plan maps a stack twice")
        if any(not value > 0 for value in self.statistics.values()):
            raise UsageError("the plan's variances must be above 0")
        teachers = {split_stack(stack.name)[0] for stack in self.teacher.stacks}
        if self.shares and (len(self.shares) != len(teachers) or not all(0 <= share <= 1 for share in self.shares)):
            raise UsageError(
                f"the plan has {len(teachers)} teachers, and {self.shares} are not a share from 0 to 1 each"
            )
        if self.relation_heads not in relation_heads_for(self.stacks):
            raise UsageError(f"the plan's {self.relation_heads} relation heads do not divide the models' widths")
        for one, (teacher, student) in zip(self.maps, self.stacks, strict=True):
            self._check(one, teacher, student)
        if self.choice and not is_measured_map(self.choice):
            raise unknown("measured map", self.choice, MEASURED)
        if self.weighting != "static" and (self.attended or self.choice):
            raise UsageError(f"the plan's map has weights lambda_l of its own, which are not {self.weighting}")
        if self.projections != projection_shapes(self.teacher, self.student, self.maps, self.style, self.attended):
            raise UsageError("the projections must join the mapped layers whose widths differ, in one style, no others")

    def _check(self, one: LayerMap, teacher: Stack, student: Stack) -> None:
        if split_stack(teacher.name)[1] != student.name and not self.pooled:
            raise UsageError(f"the plan maps {student.name} to {teacher.name}: stacks of one name are aligned")
        for ours, theirs in one.pairs:
            _in_range("student", ours, student)
            _in_range("teacher", theirs, teacher)
        alike = self.similarities.get(teacher.name)
        if alike is None:
            return
        if not all(math.isfinite(value) for row in alike for value in row):
            raise UsageError(f"the similarities of {teacher.name} are not all numbers")
        if (len(alike), *set(map(len, alike))) != (student.layers, teacher.layers):
            raise UsageError(
                f"the similarities of {teacher.name} are not {student.layers} rows of {teacher.layers} numbers"
            )

    @property
    def pairs(self) -> tuple[tuple[Layer, Layer, float], ...]:
        """All compared (student layer, teacher layer, lambda_l), stack by stack."""
        return tuple(pair for one in self.maps for pair in self.pairs_of(one))

    def pairs_of(self, one: LayerMap) -> tuple[tuple[Layer, Layer, float], ...]:
        """Pairs of one map; if teacher layers are attended to, each student layer with its mixture of them."""
        pairs = [
            (Layer(one.student_stack, ours), Layer(one.teacher_stack, theirs), weight)
            for (ours, theirs), weight in zip(one.pairs, one.weights, strict=True)
        ]
        if not self.attended:
            return tuple(pairs)
        shares: dict[Layer, float] = {}
        for ours, _, weight in pairs:
            shares[ours] = shares.get(ours, 0.0) + weight
        return tuple((ours, mixture_layer(ours, one.teacher_stack), weight) for ours, weight in shares.items())

    @property
    def teaching(self) -> tuple[Layer, ...]:
        """Teacher layers that are captured."""
        return tuple(dict.fromkeys(Layer(one.teacher_stack, theirs) for one in self.maps for _, theirs in one.pairs))

    def attended_by(self, student: Layer, mixture: Layer) -> tuple[Layer, ...]:
        """Return the teacher layers that a student layer attends to, and whose mixture it is compared with."""
        return tuple(
            Layer(one.teacher_stack, theirs)
            for one in self.maps
            for ours, theirs in one.pairs
            if Layer(one.student_stack, ours) == student and mixture_layer(student, one.teacher_stack) == mixture
        )

    def variance(self, teacher_layer: Layer) -> float:
        """Return the calibrated variance of a teacher layer's features; for a mixture, the mean over its layers."""
        layers = [teacher_layer]
        if self.attended:
            mixed = teacher_layer.stack
            layers = [layer for layer in self.teaching if mixture_layer(layer, layer.stack).stack == mixed]
        return sum(self.statistics[f"variance/{layer}"] for layer in layers) / len(layers)

    @property
    def measured(self) -> bool:
        """True unless the map depends on similarities that were not measured yet."""
        return not self.choice or bool(self.similarities)

    @property
    def calibrated(self) -> bool:
        """True if every teacher layer's variance is known, and a measured map was measured."""
        return self.measured and all(f"variance/{teacher}" in self.statistics for teacher in self.teaching)

    def with_statistics(self, statistics: Mapping[str, float]) -> "Plan":
        """Return a copy with these statistics."""
        return replace(self, statistics=dict(statistics))

    @property
    def depth(self) -> int:
        """Largest number of mapped student layers in a stack."""
        return max(len({ours for ours, _ in one.pairs}) for one in self.maps)

    def bottom(self, layers: int) -> "Plan":
        """Keep the lowest mapped student layers of each stack; their lambda_l are scaled to sum to 1."""
        maps = []
        for one in self.maps:
            lowest = sorted({ours for ours, _ in one.pairs})[:layers]
            kept = [(pair, weight) for pair, weight in zip(one.pairs, one.weights, strict=True) if pair[0] in lowest]
            pairs, weights = zip(*kept, strict=True)
            maps.append(replace(one, pairs=pairs, weights=normalise_weights(weights, pairs)))
        projections = projection_shapes(self.teacher, self.student, maps, self.style, self.attended)
        return replace(self, maps=tuple(maps), projections=projections)

    def without(self, student_stack: str) -> "Plan":
        """Leave out a stack that both models share, whose layers are equal."""
        maps = tuple(one for one in self.maps if one.student_stack != student_stack)
        projections = projection_shapes(self.teacher, self.student, maps, self.style, self.attended)
        return replace(self, maps=maps, projections=projections)

    def fits(self, teacher: Architecture, student: Architecture, pooled: bool = False) -> None:
        """Check that the plan was made for these two models, and for features that are averaged over time or not.

        Raises:
            UsageError: their stacks differ from the plan's, or their features are compared otherwise.
        """
        if self.pooled is not pooled:
            ways = {True: "averaged over time", False: "compared position by position"}
            raise UsageError(f"the plan's features are {ways[self.pooled]}, and those of these models {ways[pooled]}")
        for word, planned, given in (("teacher", self.teacher, teacher), ("student", self.student, student)):
            if (planned.stacks, planned.model_type) != (given.stacks, given.model_type):
                raise UsageError(
                    f"the plan is for the {word} {describe_stacks(planned)}, but the {word} is {describe_stacks(given)}"
                )
            if planned.family != given.family:
                raise UsageError(
                    f"the plan is for a {planned.family} model as the {word}, but the {word} is a {given.family} one"
                )

    def to_json(self) -> str:
        """Write the plan as JSON."""
        from pydantic import TypeAdapter

        return TypeAdapter(Plan).dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from JSON.

        Raises:
            UsageError: it is not a plan, or its layers are out of range.
        """
        from pydantic import TypeAdapter, ValidationError

        tree = parse_json(text, "a plan")
        check_sizes(tree)
        adapter = TypeAdapter(Plan)
        try:
            plan = adapter.validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"not a plan: {place} {first['msg']}") from None
        try:
            taken = json.loads(adapter.dump_json(plan))
        except ValueError:
            raise UsageError("not a plan: a text in it has half a surrogate pair") from None
        place = first_difference(tree, taken)
        if place:
            raise UsageError(f"not a plan: {place} is not a key of it, or its value is of another kind")
        return plan


def read_plan(file: Path) -> Plan:
    """Read a plan's file.

    Raises:
        UsageError: unreadable, or not a plan.
    """
    try:
        return Plan.from_json(read_text(file))
    except UsageError as error:
        raise UsageError(f"plan {str(file)!r}: {error}") from None


def relation_heads_for(stacks: Sequence[tuple[Stack, Stack]]) -> list[int]:
    """List the numbers of relation heads that divide every width of queries, keys and values."""
    widths = [
        number * stack.head_width for pair in stacks for stack in pair for number in (stack.heads, stack.kv_heads)
    ]
    common = math.gcd(*widths)
    return [number for number in range(1, common + 1) if common % number == 0]


def normalise_weights(weights: Sequence[float] | str, pairs: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Scale lambda_l to sum to 1; ``ramp`` is proportional to a layer's rank from the bottom, other words are equal."""
    if weights == "ramp":
        layers = sorted({ours for ours, _ in pairs})
        weights = [layers.index(ours) + 1 for ours, _ in pairs]
    if isinstance(weights, str):
        return (1 / len(pairs),) * len(pairs)
    if len(weights) != len(pairs):
        raise UsageError(f"{len(weights)} weights lambda_l are given for {len(pairs)} pairs of layers")
    total = sum(weights)
    if not 0 < total < math.inf:
        raise UsageError(f"weights lambda_l must not be negative, and one must be above 0; given {tuple(weights)}")
    return tuple(weight / total for weight in weights)


def projection_shapes(
    teacher: Architecture, student: Architecture, maps: Sequence[LayerMap], style: ProjectionStyle, attended: bool
) -> tuple[ProjectionShape, ...]:
    """Return the projections that pairs of layers of different widths need.

    Raises:
        UsageError: layers of several widths are to be mixed, or to share a projection.
    """
    shapes = []
    for layer_map in maps:
        ours, theirs = student.stack(layer_map.student_stack), teacher.stack(layer_map.teacher_stack)
        pairs = [(Layer(ours.name, one), Layer(theirs.name, other)) for one, other in layer_map.pairs]
        for stack in (ours, theirs):
            if stack.widths and (attended or style.shared):
                how = "map 'learned' mixes layers of one width" if attended else "align.shared is for layers of a width"
                raise UsageError(f"{how}, and those of the {stack.name} have {', '.join(map(str, stack.widths))}")
        if attended:
            pairs = [(one, mixture_layer(one, theirs.name)) for one in dict.fromkeys(one for one, _ in pairs)]
        sized = [(pair, ours.width_of(pair[0].number), theirs.width_of(pair[1].number)) for pair in pairs]
        differ = [(pair, ours_wide, theirs_wide) for pair, ours_wide, theirs_wide in sized if ours_wide != theirs_wide]
        for pair, ours_wide, theirs_wide in differ[: 1 if style.shared else None]:
            shapes.append(ProjectionShape(*pair, ours_wide, theirs_wide, style))
    return tuple(shapes)


def _in_range(word: str, layer: int, stack: Stack) -> None:
    if not 0 <= layer < stack.layers:
        raise UsageError(f"the map names {word} layer {layer}; its {stack.name} has layers 0 to {stack.layers - 1}")


def describe_stacks(architecture: Architecture) -> str:
    """Describe a model's type and the sizes of its stacks, for an error line."""
    stacks = ", ".join(f"{s.name} {s.layers} x {s.width}, {s.heads} heads" for s in architecture.stacks)
    return f"{architecture.model_type} ({stacks})"
