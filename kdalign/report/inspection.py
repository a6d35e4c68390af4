"""Inspections of a run as Rich tables: layer similarity, answers to one text, examples on which the models disagree."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line
from kdalign.runs.disagreements import Disagreements

if TYPE_CHECKING:
    from kdalign.distillation.inspection import AttentionView, LayerSimilarity


def inspection_table(
    likeness: "LayerSimilarity", looks: "AttentionView", differing: Disagreements | None
) -> RenderableType:
    """Render an inspection: layers, answers to a text and, if there are any, examples."""
    parts: list[RenderableType] = [_layers(likeness), Text("")]
    word = {"text": "text", "audio": "sound", "image": "image"}[looks.modality]
    parts.append(plain_text(f"{word}: {' | '.join(looks.texts)}"))
    several = any(":" in stack for stack in likeness.pairs)  # a later teacher's stack has its number in front
    if looks.answers:
        named = zip(("student", "teacher 1" if several else "teacher"), looks.answers, strict=True)
        parts.append(plain_text("; ".join(f"{who}: {label}, {100 * sure:.0f} % sure" for who, (label, sure) in named)))
    if differing is not None:
        parts += [Text(""), *_examples(differing, "all teachers" if several else "teacher")]
    read = {
        "text": "tokens of training text, without special ones",
        "audio": "positions of training sounds and tokens of their transcripts",
        "image": "positions of training images",
    }[looks.modality]
    note = f"CKA: debiased, linear, over {likeness.tokens:,} {read}"
    return Group(*parts, note_line(note))


def _layers(likeness: "LayerSimilarity") -> Table:
    """Similarity of each pair of layers that training compared, before and after."""
    table = new_table("Similarity (CKA) of the compared layers")
    for heading in ("student layer", "teacher layer"):
        table.add_column(heading)
    for heading in ("before", "after", "gain"):
        table.add_column(heading, justify="right")
    several = len(likeness.pairs) > 1
    for stack, pairs in likeness.pairs.items():
        for ours, theirs in pairs:
            before, after = likeness.before[stack][ours][theirs], likeness.after[stack][ours][theirs]
            layers = (
                (stack.rpartition(":")[2], ours),
                (stack, theirs),
            )  # a later teacher's stack has its number in front
            names = [f"{name}.{layer}" if several else str(layer) for name, layer in layers]
            table.add_row(*map(plain_text, names), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    return table


def _examples(differing: Disagreements, taught: str) -> list[RenderableType]:
    """The examples on which the student differs most from its teacher, or from all of them as one."""
    head = f"{differing.task}, {differing.split}: {differing.differ:,} of {differing.n:,} answers differ"
    if not differing.examples:
        return [plain_text(head)]
    table = new_table(f"{head}; the {len(differing.examples)} farthest apart")
    table.add_column("text", overflow="fold", ratio=1)
    for heading in ("label", taught, "student"):
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
