"""Pictures of models: what they cost, how alike their layers are, where they look."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdalign.errors import printable, printable_names
from kdalign.metrics.arrays import Array
from kdalign.report.plots.figure import WIDTH, NamedFigure, plot_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kdalign.alignment.plan import Plan
    from kdalign.models.profiling import Profile

MOST_NUMBERS = 16
"""A matrix with more rows or columns than this shows colours without numbers."""
MOST_BESIDE = 8
"""Matrices with more columns than this stand one below the other."""
MOST_TOKENS = 40
"""An attention map of more tokens than this has no words at its sides."""


def draw_similarities(plan: "Plan", file: Path) -> None:
    """How alike the student's layers are to the teacher's, one heat map a stack; the plan's pairs are framed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shapes = [(ours.layers, theirs.layers) for theirs, ours in plan.stacks]
    width = sum(2.2 + 0.5 * columns for _, columns in shapes)
    height = 1.6 + 0.5 * max(rows for rows, _ in shapes)
    figure = Figure(figsize=(max(width, 5), max(height, 3)), layout="constrained")
    every = [value for alike in plan.similarities.values() for row in alike for value in row]
    panels = figure.subplots(1, len(plan.maps), squeeze=False)[0]
    for axes, one in zip(panels, plan.maps, strict=True):
        alike = plan.similarities[one.student_stack]
        image = axes.imshow(alike, cmap="viridis", vmin=min(0.0, *every), vmax=1, aspect="equal")
        axes.set_xlabel(f"teacher's {one.teacher_stack} layer")
        axes.set_ylabel(f"student's {one.student_stack} layer")
        axes.set_xticks(range(len(alike[0])))
        axes.set_yticks(range(len(alike)))
        if max(len(alike), len(alike[0])) <= MOST_NUMBERS:
            for row, values in enumerate(alike):
                for column, value in enumerate(values):
                    axes.text(
                        column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="wk"[int(value > 0.6)]
                    )
        for ours, theirs in one.pairs:
            axes.add_patch(Rectangle((theirs - 0.5, ours - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
        figure.colorbar(image, ax=axes, label="debiased linear CKA", shrink=0.8)
    figure.suptitle(f"{plan.teacher.model_type} teaches {plan.student.model_type}: {plan.chosen}", fontsize=9)
    save(figure, file)


def draw_costs(profiles: Sequence["Profile"], file: Path) -> None:
    """Where parameters and FLOPs of models lie: a bar a model, its parts stacked from the embeddings up."""
    from matplotlib.figure import Figure

    lengths = list(profiles[0].flops_per_token)
    figure = Figure(figsize=(4 + 1.2 * len(profiles) * (1 + len(lengths)), 4.5), layout="constrained")
    panels = figure.subplots(1, 1 + len(lengths), squeeze=False)[0]
    names = printable_names([Path(profile.name).name for profile in profiles])
    titles = ["parameters (M)", *(f"MFLOP per token, {length} tokens" for length in lengths)]
    for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for bar, profile in enumerate(profiles):
            bottom = 0.0
            for part in profile.parts:
                value = (part.parameters if number == 0 else part.flops_per_token[lengths[number - 1]]) / 1e6
                stack = part.name.partition(".")[0]
                axes.bar(bar, value, bottom=bottom, color=_COLOURS[stack], edgecolor="white", linewidth=0.5)
                bottom += value
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        axes.set_title(title, fontsize=9)
    stacks = dict.fromkeys(part.name.partition(".")[0] for profile in profiles for part in profile.parts)
    handles = [panels[0].bar(0, 0, color=_COLOURS[stack]) for stack in stacks]
    figure.legend(
        handles, [_WORDS.get(stack, f"{stack} layers") for stack in stacks], loc="outside lower center", ncols=4
    )
    save(figure, file)


_COLOURS = {"embeddings": "tab:gray", "encoder": "tab:blue", "decoder": "tab:orange", "rest": "tab:green"}
_WORDS = {"embeddings": "embeddings", "rest": "head and the rest"}


@plot_style
def draw_likeness(
    before: Mapping[str, Sequence[Sequence[float]]],
    after: Mapping[str, Sequence[Sequence[float]]],
    pairs: Mapping[str, Sequence[tuple[int, int]]],
    words: str = "",
) -> NamedFigure:
    """How alike the student's layers are to the teacher's before and after training, on one scale.

    Args:
        before: for each stack, CKA, (student layers, teacher layers).
        after: the same after training.
        pairs: for each stack, the (student layer, teacher layer) that the plan compares, which are framed.
        words: what was read, for the caption.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    stacks = list(after)
    widest = max(len(rows[0]) for rows in after.values())
    beside = widest <= MOST_BESIDE
    shape = (len(stacks), 2) if beside else (2 * len(stacks), 1)
    cell = WIDTH / (widest * shape[1] + 2)
    height = sum((len(after[stack]) * cell + 0.75) * (1 if beside else 2) for stack in stacks)
    figure = Figure(figsize=(WIDTH, max(height + 0.3, 1.8)), layout="constrained")
    found = figure.subplots(*shape, squeeze=False).ravel().tolist()
    lowest = min(0.0, *(value for each in (before, after) for rows in each.values() for row in rows for value in row))
    panels = [(stack, when, each[stack]) for stack in stacks for when, each in (("before", before), ("after", after))]
    for axes, (stack, when, rows) in zip(found, panels, strict=True):
        image = axes.imshow(rows, cmap="cividis", vmin=lowest, vmax=1, aspect="equal")
        axes.set_title(f"{when} training" if len(stacks) == 1 else f"{stack}, {when} training")
        axes.set_xlabel("teacher layer")
        axes.set_ylabel("student layer")
        axes.set_xticks(range(len(rows[0])))
        axes.set_yticks(range(len(rows)))
        if max(len(rows), len(rows[0])) <= MOST_NUMBERS:
            _write_values(axes, rows, lowest, 5.5 if len(rows[0]) > 6 else 6.5)
        for ours, theirs in pairs[stack]:
            axes.add_patch(Rectangle((theirs - 0.5, ours - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=1.6))
    figure.colorbar(image, ax=found, label="debiased linear CKA", location="bottom", shrink=0.6, aspect=40)
    gains = [
        f"{stack} {ours} and {theirs}: {before[stack][ours][theirs]:.2f} to {after[stack][ours][theirs]:.2f}"
        for stack in stacks
        for ours, theirs in pairs[stack]
    ]
    caption = (
        f"Likeness of every student layer to every teacher layer{words}. Framed: pairs that were compared in training."
    )
    return NamedFigure(
        "likeness", figure, "Layers before and after training", caption, f"Heat maps. Framed pairs: {'; '.join(gains)}."
    )


def _write_values(axes: "Axes", rows: Sequence[Sequence[float]], lowest: float, size: float) -> None:
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            bright = (value - lowest) / (1 - lowest) > 0.55
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color="kw"[int(not bright)])


@plot_style
def draw_attention(
    maps: Sequence[tuple[str, str, Array, Array]],
    student_tokens: Sequence[str],
    teacher_tokens: Sequence[str],
    head: int | None = None,
) -> NamedFigure:
    """Where student and teacher look in one text: a row of two maps for each pair of layers, on one scale.

    Args:
        maps: for each pair, the student layer's name, the teacher layer's, and the attention of both, (heads, tokens,
            tokens), probabilities over the last axis.
        student_tokens: as words.
        teacher_tokens: likewise.
        head: whose map is drawn; the mean over heads when left out.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 2.45 * len(maps) + 0.55), layout="constrained")
    found = figure.subplots(len(maps), 2, squeeze=False)
    drawn = [
        (one.mean(axis=0), other.mean(axis=0)) if head is None else (one[head], other[head])
        for _, _, one, other in maps
    ]
    greatest = max(float(values.max()) for pair in drawn for values in pair)
    for row, (names, pair) in enumerate(zip(maps, drawn, strict=True)):
        for axes, who, name, values, tokens in zip(
            found[row], ("student", "teacher"), names[:2], pair, (student_tokens, teacher_tokens), strict=True
        ):
            scale = PowerNorm(0.5, vmin=0, vmax=greatest)
            image = axes.imshow(values, cmap="cividis", norm=scale, aspect="equal", interpolation="nearest")
            axes.set_title(f"{who}, layer {name}")
            axes.tick_params(length=0)
            if len(tokens) > MOST_TOKENS:
                axes.set_xticks([])
                axes.set_yticks([])
                continue
            size = 6.5 if len(tokens) <= 18 else 4.5
            axes.set_xticks(range(len(tokens)), list(map(printable, tokens)), rotation=90, fontsize=size)
            axes.set_yticks(range(len(tokens)), list(map(printable, tokens)), fontsize=size)
            if who == "teacher" and list(student_tokens) == list(teacher_tokens):
                axes.tick_params(labelleft=False)
    figure.colorbar(image, ax=found.ravel().tolist(), label="attention", location="bottom", shrink=0.6, aspect=40)
    of = "the mean over heads" if head is None else f"head {head}, counted from 0"
    caption = (
        f"Rows: tokens that look; columns: tokens looked at; {of}, before dropout, on one text; colours "
        f"by the square root, so that small shares are seen. "
        f"Pairs of layers are the plan's."
    )
    layers = ", ".join(f"{ours} beside {theirs}" for ours, theirs, _, _ in maps)
    return NamedFigure(
        "attention", figure, "Where student and teacher look", caption, f"Attention maps of layers {layers}."
    )
