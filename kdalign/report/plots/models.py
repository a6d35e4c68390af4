"""Plots of models: costs, layer similarity, attention maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdalign.errors import printable, printable_names
from kdalign.metrics.arrays import Array
from kdalign.report.plots.figure import WIDTH, NamedFigure, plot_style, save
from kdalign.report.profile import flops_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kdalign.alignment.plan import Plan
    from kdalign.models.profiling import Profile

MOST_NUMBERS = 16
"""Rows and columns up to which a matrix shows numbers."""
MOST_BESIDE = 8
"""Columns up to which two matrices stand side by side."""
MOST_TOKENS = 40
"""Tokens up to which an attention map is labelled with words."""


def draw_similarities(plan: "Plan", file: Path) -> None:
    """Plot the similarity of student and teacher layers, a heat map per stack, with the plan's pairs framed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shapes = [(ours.layers, theirs.layers) for theirs, ours in plan.stacks]
    width = sum(2.2 + 0.5 * columns for _, columns in shapes)
    height = 1.6 + 0.5 * max(rows for rows, _ in shapes)
    figure = Figure(figsize=(max(width, 5), max(height, 3)), layout="constrained")
    values = [value for rows in plan.similarities.values() for row in rows for value in row]
    panels = figure.subplots(1, len(plan.maps), squeeze=False)[0]
    for axes, layer_map in zip(panels, plan.maps, strict=True):
        similarities = plan.similarities[layer_map.teacher_stack]
        image = axes.imshow(similarities, cmap="viridis", vmin=min(0.0, *values), vmax=1, aspect="equal")
        axes.set_xlabel(f"teacher's {layer_map.teacher_stack} layer")
        axes.set_ylabel(f"student's {layer_map.student_stack} layer")
        axes.set_xticks(range(len(similarities[0])))
        axes.set_yticks(range(len(similarities)))
        if max(len(similarities), len(similarities[0])) <= MOST_NUMBERS:
            for row, of_row in enumerate(similarities):
                for column, value in enumerate(of_row):
                    axes.text(
                        column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="wk"[int(value > 0.6)]
                    )
        for ours, theirs in layer_map.pairs:
            axes.add_patch(Rectangle((theirs - 0.5, ours - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
        figure.colorbar(image, ax=axes, label="debiased linear CKA", shrink=0.8)
    figure.suptitle(f"{plan.teacher.model_type} teaches {plan.student.model_type}: {plan.chosen}", fontsize=9)
    save(figure, file)


def draw_costs(profiles: Sequence["Profile"], file: Path) -> None:
    """Plot parameters and FLOPs of models: a bar per model, its parts stacked from the embeddings up."""
    from matplotlib.figure import Figure

    lengths = list(profiles[0].flops_per_token)
    figure = Figure(figsize=(4 + 1.2 * len(profiles) * (1 + len(lengths)), 4.5), layout="constrained")
    panels = figure.subplots(1, 1 + len(lengths), squeeze=False)[0]
    names = printable_names([Path(profile.name).name for profile in profiles])
    titles = ["parameters (M)", *(flops_title(profiles[0], length) for length in lengths)]
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


_COLOURS = {"embeddings": "tab:gray", "encoder": "tab:blue", "decoder": "tab:orange", "vision": "tab:blue"} | {
    "rest": "tab:green"
}
_WORDS = {"embeddings": "embeddings", "rest": "head and the rest"}


@plot_style
def draw_likeness(
    before: Mapping[str, Sequence[Sequence[float]]],
    after: Mapping[str, Sequence[Sequence[float]]],
    pairs: Mapping[str, Sequence[tuple[int, int]]],
    words: str = "",
) -> NamedFigure:
    """Plot the similarity of student and teacher layers before and after training, on one scale.

    Args:
        before: CKA, (student layers, teacher layers), of each stack.
        after: the same after training.
        pairs: the (student layer, teacher layer) pairs of each stack that the plan compares, which are framed.
        words: the texts that were read, as a clause of the caption.
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
    caption = f"Similarity of every student layer to every teacher layer{words}. Framed: pairs that training compared."
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
    """Plot attention maps of student and teacher on one text: a row of two for each pair of layers, on one scale.

    Args:
        maps: the student layer's name, the teacher layer's, and the attention of both, (heads, tokens, tokens),
            probabilities over the last axis, for each pair.
        student_tokens: the student's tokens as words.
        teacher_tokens: the teacher's tokens as words.
        head: number of the head to draw; None draws the mean over heads.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 2.45 * len(maps) + 0.55), layout="constrained")
    found = figure.subplots(len(maps), 2, squeeze=False)
    drawn = [
        (ours.mean(axis=0), theirs.mean(axis=0)) if head is None else (ours[head], theirs[head])
        for _, _, ours, theirs in maps
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
        f"Rows: attending tokens; columns: tokens attended to; {of}, before dropout, on one text; colours by the "
        f"square root, so that small shares are visible. Pairs of layers are the plan's."
    )
    layers = ", ".join(f"{ours} next to {theirs}" for ours, theirs, _, _ in maps)
    return NamedFigure(
        "attention", figure, "Attention of student and teacher", caption, f"Attention maps of layers {layers}."
    )
