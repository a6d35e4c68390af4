"""What was found inside a run, as Rich tables: layers, answers to one text, examples that divide the two models."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdalign.report.screen import plain_text
from kdalign.runs.disagreements import Disagreements

if TYPE_CHECKING:
    from kdalign.distillation.inspection import AttentionView, LayerSimilarity


def inspection_table(
    likeness: "LayerSimilarity", looks: "AttentionView", differing: Disagreements | None
) -> RenderableType:
    """All of it, one below the other; examples where there are any."""
    parts: list[RenderableType] = [_layers(likeness), Text("")]
    parts.append(plain_text(f"text: {' | '.join(looks.texts)}"))
    if looks.answers:
        named = zip(("student", "teacher"), looks.answers, strict=True)
        parts.append(plain_text("; ".join(f"{who}: {label}, {100 * sure:.0f} % sure" for who, (label, sure) in named)))
    if differing is not None:
        parts += [Text(""), *_examples(differing)]
    note = f"CKA: debiased, linear, over {likeness.tokens:,} tokens of training text, special ones left out"
    return Group(*parts, Text(f"· {note}", style="dim"))


def _layers(likeness: "LayerSimilarity") -> Table:
    """How alike each pair of layers that training compared is, before and after."""
    table = _table("Likeness (CKA) of the layers that were compared")
    for heading in ("student layer", "teacher layer"):
        table.add_column(heading)
    for heading in ("before", "after", "gain"):
        table.add_column(heading, justify="right")
    several = len(likeness.pairs) > 1
    for stack, pairs in likeness.pairs.items():
        for ours, theirs in pairs:
            before, after = likeness.before[stack][ours][theirs], likeness.after[stack][ours][theirs]
            names = [f"{stack}.{layer}" if several else str(layer) for layer in (ours, theirs)]
            table.add_row(*map(plain_text, names), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    return table


def _examples(differing: Disagreements) -> list[RenderableType]:
    """The examples on which the two differ most."""
    head = (
        f"{differing.task}, {differing.split}: {differing.differ:,} of {differing.n:,} examples are answered otherwise"
    )
    if not differing.examples:
        return [plain_text(head)]
    table = _table(f"{head}; the {len(differing.examples)} farthest apart")
    table.add_column("text", overflow="fold", ratio=1)
    for heading in ("label", "teacher", "student"):
        table.add_column(heading)
    table.add_column("distance", justify="right")
    for example in differing.examples:
        table.add_row(
            Text("\n").join(map(plain_text, example.texts)) if example.texts else f"example {example.row}",
            plain_text(example.label),
            _answer(example.teacher, example.teacher_confidence),
            _answer(example.student, example.confidence),
            f"{example.distance:.2f}",
        )
    return [table]


def _answer(label: str, sure: float | None) -> Text:
    return plain_text(label) if sure is None else plain_text(label).append(f"\n{100 * sure:.0f} % sure")


def _table(title: str) -> Table:
    return Table(title=plain_text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, title_style="bold")
