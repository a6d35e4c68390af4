"""Layer plans as Rich tables: which teacher layer teaches which student layer."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line

if TYPE_CHECKING:
    from kdalign.alignment.plan import LayerMap, Plan


def plan_table(plan: "Plan") -> RenderableType:
    """Render a layer plan: the teacher layer of each student layer and, if it was measured, how similar layers are."""
    from kdalign.alignment.propose import map_similarities
    from kdalign.models.architecture import split_stack

    several = len({split_stack(one.teacher_stack)[0] for one in plan.maps}) > 1
    teach = "teach" if several else "teaches"
    table = new_table(f"{plan.teacher.model_type} {teach} {plan.student.model_type}")
    for heading in ("student layer", "teacher layer", "lambda", "projection", "projection weights"):
        table.add_column(heading, justify="right")
    shapes = {(shape.student, shape.teacher): shape for shape in plan.projections}
    single = len(plan.maps) == 1
    for student, teacher, weight in plan.pairs:
        shape = shapes.get((student, teacher))
        table.add_row(
            plain_text(str(student.number if single else student)),
            plain_text("all" if plan.attended else str(teacher.number if single else teacher)),
            f"{weight:.3f}",
            f"{shape.student_width} to {shape.teacher_width}" if shape else "none, widths agree",
            f"{shape.parameters:,}" if shape else "0",
        )
    total = sum(shape.parameters for shape in plan.projections)
    notes = [f"map: {plan.chosen}; layers count from 0; {total:,} projection weights, not in the exported student"]
    scores = map_similarities(plan)
    if scores:
        notes.append("CKA of mapped layers: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    heat = [_heat_map(plan, layer_map) for layer_map in plan.maps if layer_map.teacher_stack in plan.similarities]
    return Group(table, *heat, *map(note_line, notes))


_NUMBERS_FIT = 12
"""Teacher layers up to which a heat map shows numbers."""
_SHADES = " ░▒▓█"


def _heat_map(plan: "Plan", layer_map: "LayerMap") -> RenderableType:
    """Similarities of two stacks' layers: numbers if they fit, else shades; mapped layers are starred."""
    similarities = plan.similarities[layer_map.teacher_stack]
    numbers = len(similarities[0]) <= _NUMBERS_FIT
    table = Table(
        box=None, padding=0, title=plain_text(f"similarity (CKA), {layer_map.teacher_stack}"), title_justify="left"
    )
    table.add_column("", min_width=3)
    for layer in range(len(similarities[0])):
        table.add_column(f" {layer:>4} " if numbers else f"{layer % 10} ", no_wrap=True)
    for ours, values in enumerate(similarities):
        cells = []
        for theirs, value in enumerate(values):
            star = "*" if (ours, theirs) in layer_map.pairs else " "
            level = min(max(value, 0.0), 1.0)
            text = f"{value:4.2f}{star}" if numbers else _SHADES[round(4 * level)] + star
            red, green, blue = int(40 + 180 * level), int(40 + 170 * level), int(90 - 40 * level)
            style = (
                f"{'bold ' if star == '*' else ''}{'black' if level > 0.5 else 'white'} on rgb({red},{green},{blue})"
            )
            cells.append(Text(text, style=style))
        table.add_row(str(ours), *cells)
    return Group(Text(""), table)
