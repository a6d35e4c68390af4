"""Pictures of what was measured, as PNG, SVG or PDF by the file's name. Computes nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdalign.errors import UsageError
from kdalign.files import check_writable, whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdalign.alignment import Plan
    from kdalign.profiling import Profile

ENDINGS = (".png", ".svg", ".pdf")
MOST_NUMBERS = 16
"""A matrix with more rows or columns than this shows colours without numbers."""


def check_picture(file: Path) -> None:
    """Refuse a file of another kind, or one that cannot be written, before anything is computed.

    Raises:
        UsageError: what is accepted.
    """
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(f"--plot {str(file)!r}: accepted are files that end in {', '.join(ENDINGS)}")
    if file.is_dir():
        raise UsageError(f"--plot {str(file)!r} is a folder; name a file")
    check_writable(file.parent)


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
    _save(figure, file)


def draw_costs(profiles: Sequence["Profile"], file: Path) -> None:
    """Where parameters and FLOPs of models lie: a bar a model, its parts stacked from the embeddings up."""
    from matplotlib.figure import Figure

    lengths = list(profiles[0].flops_per_token)
    figure = Figure(figsize=(4 + 1.2 * len(profiles) * (1 + len(lengths)), 4.5), layout="constrained")
    panels = figure.subplots(1, 1 + len(lengths), squeeze=False)[0]
    names = [Path(profile.name).name for profile in profiles]
    titles = ["parameters (M)", *(f"MFLOP a token, {length} tokens" for length in lengths)]
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
    _save(figure, file)


_COLOURS = {"embeddings": "tab:gray", "encoder": "tab:blue", "decoder": "tab:orange", "rest": "tab:green"}
_WORDS = {"embeddings": "embeddings", "rest": "head and the rest"}


def _save(figure: "Figure", file: Path) -> None:
    with whole_file(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:].lower(), dpi=150)
