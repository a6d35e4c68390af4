"""From results of evaluations, profiles and plans to what people read: Rich tables, JSON. Computes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from kdalign.errors import printable, printable_names, shorten
from kdalign.report.layout import in_digits
from kdalign.report.screen import plain_text
from kdalign.report.style import LONGEST_NOTE, new_table

if TYPE_CHECKING:
    from kdalign.alignment.plan import LayerMap, Plan
    from kdalign.evaluation.result import EvaluationResult
    from kdalign.metrics.classification import Score
    from kdalign.models.profiling import Profile

MOST_METRICS = 6
"""An evaluation with more metrics than this has further tables for the rest."""


def evaluation_table(evaluations: Sequence["EvaluationResult"]) -> RenderableType:
    """Scores of an evaluation, a table for each split, one model a row; a dash where there is none, with the reason."""
    splits = list(dict.fromkeys((one.task, one.split, one.n, one.source) for one in evaluations))
    parts: list[RenderableType] = []
    for task, split, n, source in splits:
        rows = [one for one in evaluations if (one.task, one.split, one.n, one.source) == (task, split, n, source)]
        names = [score.metric for one in rows for score in one.scores]
        names += [absent.metric for one in rows for absent in one.absent]
        metrics = list(dict.fromkeys(names))
        parts.append(_SplitTables(f"{task}, {split}, n = {n:,} of {source}", f"{task}, further metrics", rows, metrics))
    notes = (plain_text(f"· {shorten(note, LONGEST_NOTE)}", style="dim") for note in _evaluation_notes(evaluations))
    return Group(*parts, *notes)


@dataclass(frozen=True)
class _SplitTables:
    """One split's scores in as many tables as the width asks for: a number is never broken over two lines.

    Attributes:
        title: of the first table.
        more: of those after it.
    """

    title: str
    more: str
    rows: Sequence["EvaluationResult"]
    metrics: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        short = [Path(row.model).name for row in self.rows]
        alone = len(set(short)) == len({row.model for row in self.rows})
        names = printable_names(short if alone else [row.model for row in self.rows])
        sizes: list[str] = []
        if len(self.rows) > 1 and any(row.parameters for row in self.rows):
            sizes = [f"{row.parameters / 1e6:,.1f}" if row.parameters else "" for row in self.rows]
        wanted = max(map(len, ("model", *names)))
        taken = min(wanted, max(8, options.max_width // 4)) + _EDGES
        taken += _GAP + max(map(len, ("params", *sizes))) if sizes else 0
        columns = [self._column(metric, options.max_width - taken - _GAP) for metric in self.metrics]
        for number, part in enumerate(_parts(columns, options.max_width - taken)):
            table = new_table(self.more if number else self.title)
            table.add_column("model", overflow="fold")
            if sizes:
                table.add_column("params\n(M)", justify="right", no_wrap=True)
            for column in part:
                table.add_column(Text("\n".join(column.heading)), justify="right", no_wrap=True)
            for line, (row, name) in enumerate(zip(self.rows, names, strict=True)):
                cells = [*sizes[line : line + 1], *(column.cells[line] for column in part)]
                table.add_row(plain_text(name), *cells, style="dim" if row.kind == "baseline" else "")
            yield table

    def _column(self, metric: str, room: int) -> "_Column":
        """A metric's; without intervals where they do not fit beside the models' names."""
        cells = [_score_cell({score.metric: score for score in row.scores}.get(metric)) for row in self.rows]
        if max(len(line) for cell in cells for line in cell.split("\n")) > room:
            cells = [cell.partition("\n")[0] for cell in cells]
        return _Column(tuple(map(printable, _broken(metric).split("\n"))), tuple(cells))


@dataclass(frozen=True)
class _Column:
    heading: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        """In characters."""
        return max(len(line) for text in (*self.heading, *self.cells) for line in text.split("\n"))


_GAP, _EDGES = 3, 2
"""Characters between two columns of a table, and at both its edges."""


def _parts(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Columns for one table after another: as many as fit a width, at most ``MOST_METRICS``."""
    parts: list[list[_Column]] = [[]]
    for column in columns:
        used = sum(other.width + _GAP for other in parts[-1])
        if parts[-1] and (used + column.width + _GAP > width or len(parts[-1]) == MOST_METRICS):
            parts.append([])
        parts[-1].append(column)
    return parts


def _broken(metric: str) -> str:
    """A metric's name, on two lines where it is long."""
    metric = metric.replace(" ", "\n")
    head, mark, tail = metric.rpartition("_")
    return f"{head}{mark}\n{tail}" if mark and len(metric) > 8 and "\n" not in metric else metric


def _score_cell(score: "Score | None") -> str:
    if score is None or score.value is None:
        return "–"
    shown = in_digits(score.value, 2) + ("*" if score.mark else "")
    if score.low is not None and score.high is not None:
        shown += f"\n{in_digits(score.low, 1)} to {in_digits(score.high, 1)}"
    return shown


def _evaluation_notes(evaluations: Sequence["EvaluationResult"]) -> list[str]:
    """How the scores were made, what is missing and why."""
    made: dict[str, dict[str, None]] = {}
    models: dict[str, dict[str, None]] = {}
    ways: dict[str, set[str]] = {}
    notes: dict[str, None] = {}
    for one in evaluations:
        for score in one.scores:
            unit = f" (in {score.unit})" if score.unit else ""
            made.setdefault(score.signature, {})[f"{score.metric}{unit}"] = None
            models.setdefault(score.signature, {})[Path(one.model).name] = None
            ways.setdefault(f"{score.metric}{unit}", set()).add(score.signature)
            if score.mark:
                notes[f"* {score.mark}-perplexity: no perplexity, and compares with none"] = None
    for signature, names in made.items():
        whose = f" of {', '.join(models[signature])}" if any(len(ways[name]) > 1 for name in names) else ""
        notes[f"{', '.join(names)}{whose}: {signature}"] = None
    if any(score.low is not None for one in evaluations for score in one.scores):
        notes["below a score: its 95 % interval over examples"] = None
    notes |= _of_conventions(evaluations)
    several = len({(one.task, one.split) for one in evaluations}) > 1
    for one in evaluations:
        here = f"{one.model} on {one.task}, {one.split}" if several else one.model
        notes |= dict.fromkeys(one.notes)
        reasons: dict[str, list[str]] = {}
        whose = f" ({Path(one.model).name})" if len(evaluations) > 1 else ""
        for score in one.scores:
            if score.value is None:
                reasons.setdefault(f"– because {score.reason}{whose}", []).append(score.metric)
        for absent in one.absent:
            more = f"; this makes one: {absent.command}" if absent.command else ""
            reasons.setdefault(f"– because {absent.reason}{more}", []).append(absent.metric)
        notes |= {f"{', '.join(names)}: {reason}": None for reason, names in reasons.items()}
        if one.truncated:
            notes[f"{here}: {one.truncated:,} examples were cut to --max-length"] = None
        if one.passed_over:
            notes[f"{here}: {one.passed_over:,} examples hold no answer within --max-length"] = None
        if one.submission:
            notes[f"leaderboard file: {one.submission}"] = None
    return list(notes)


def _of_conventions(evaluations: Sequence["EvaluationResult"]) -> dict[str, None]:
    """What must be known to read single scores, and what baselines have no scores of."""
    told: dict[tuple[str, str], dict[str, None]] = {}
    for one in evaluations:
        for score in one.scores:
            if score.note:
                told.setdefault((score.metric, score.note), {})[Path(one.model).name] = None
    notes: dict[str, None] = {}
    for (metric, note), models in told.items():
        alike = all(any(s.note == note for s in one.scores if s.metric == metric) for one in evaluations)
        whose = "" if alike else f" of {', '.join(models)}"
        notes[f"{metric}{whose}: {note}"] = None
    for baseline in (one for one in evaluations if one.kind == "baseline"):
        beside = [
            one for one in evaluations if (one.task, one.split, one.n) == (baseline.task, baseline.split, baseline.n)
        ]
        metrics = dict.fromkeys(metric for one in beside for metric in _metrics_of(one))
        own = _metrics_of(baseline)
        lacking = [metric for metric in metrics if metric not in own]
        if lacking:
            notes[f"{', '.join(lacking)}: – because the baseline {baseline.model} is no model that has one"] = None
    return notes


def _metrics_of(one: "EvaluationResult") -> list[str]:
    return [score.metric for score in one.scores] + [absent.metric for absent in one.absent]


def profile_table(profiles: Sequence["Profile"], layers: bool = False) -> RenderableType:
    """Models side by side, and each one's ratio to the first; with ``layers`` a table of each one's parts."""
    first = profiles[0]
    table = new_table()
    table.add_column("")
    for number, profile in enumerate(profiles):
        table.add_column(plain_text(profile.name), justify="right", overflow="fold")
        if number:
            table.add_column("ratio", justify="right")

    def add(label: str, values: Sequence[float | None], form: str, ratio: bool = True) -> None:
        cells = []
        for number, value in enumerate(values):
            cells.append("–" if value is None else format(value, form))
            if number:
                base = values[0]
                cells.append(f"{value / base:.2f}" if ratio and value is not None and base else "")
        table.add_row(label, *cells)

    types = [
        plain_text(cell)
        for number, profile in enumerate(profiles)
        for cell in ([profile.model_type, ""] if number else [profile.model_type])
    ]
    table.add_row("model type", *types)
    add("layers", [p.layers for p in profiles], ",.0f")
    add("width", [p.width for p in profiles], ",.0f")
    add("attention heads", [p.heads for p in profiles], ",.0f")
    add("feed-forward width", [p.feed_forward for p in profiles], ",.0f")
    add("vocabulary", [p.vocabulary for p in profiles], ",.0f")
    add("parameters (M, tied once)", [p.parameters / 1e6 for p in profiles], ",.2f")
    add("  in the embeddings (M)", [p.embedding_parameters / 1e6 for p in profiles], ",.2f")
    add("on disk (MB)", [p.megabytes for p in profiles], ",.1f")
    for name in first.weights_mb:
        add(f"weights in {name} (MB)", [p.weights_mb[name] for p in profiles], ",.1f")
    add("training in fp32 (MB)", [p.training_mb for p in profiles], ",.1f")
    for name in first.weights_mb if any(p.cache_kb_per_token for p in profiles) else ():
        add(f"cache a token in {name} (kB)", [p.cache_kb_per_token.get(name) for p in profiles], ",.1f")
    for length in first.flops_per_token:
        add(f"MFLOP a token, {length} tokens", [p.flops_per_token[length] / 1e6 for p in profiles], ",.2f")
        add("  growing with length² (%)", [100 * p.quadratic_share[length] for p in profiles], ",.1f", ratio=False)
        add("  with its backward", [p.training_flops_per_token[length] / 1e6 for p in profiles], ",.2f")
    for number, timing in enumerate(first.timings):
        timed = [p.timings[number] for p in profiles]
        add(f"latency p50 (ms), {timing.length} tokens", [t.latency_ms for t in timed], ",.2f")
        add(f"latency p95 (ms), {timing.length} tokens", [t.latency_p95_ms for t in timed], ",.2f")
        add(f"examples/s, batch {timing.batch_size}, {timing.length} tokens", [t.throughput for t in timed], ",.1f")
        add("  peak beside the weights (MB)", [t.peak_mb for t in timed], ",.1f")
        add("  kept to train on (MB)", [t.activations_mb for t in timed], ",.1f")
    notes = [
        "FLOPs: of one forward, counted by torch over eager attention, 2 a multiply-add, the head included",
        "training: weights, gradients and AdamW's moments; activations come on top",
    ]
    if first.timings:
        notes.append(
            f"times and peak: measured on {first.device} in {first.precision} after warm-up; latency at batch 1"
        )
        notes.append("kept to train on: activations that a training forward in fp32 keeps for its backward")
    for column in table.columns[1:]:  # a name may be folded, a number may not
        column.min_width = max(len(cell) for cell in column.cells if isinstance(cell, str))
    parts = [_parts_table(profile) for profile in profiles] if layers else []
    return Group(table, *parts, *(plain_text(f"· {shorten(note, LONGEST_NOTE)}", style="dim") for note in notes))


def _parts_table(profile: "Profile") -> RenderableType:
    """One model's parameters and FLOPs, part by part; neighbours that cost the same are one row."""
    table = new_table(profile.name)
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for length in profile.flops_per_token:
        table.add_column(f"MFLOP a token, {length}", justify="right")
    rows: list[tuple[list[str], list[str]]] = []
    for part in profile.parts:
        values = [f"{part.parameters:,}", *(f"{flops / 1e6:,.3f}" for flops in part.flops_per_token.values())]
        if rows and rows[-1][1] == values:
            rows[-1][0].append(part.name)
        else:
            rows.append(([part.name], values))
    for names, values in rows:
        last = names[-1].rpartition(".")[2]
        table.add_row(plain_text(names[0] if len(names) == 1 else f"{names[0]} to {last}, each"), *values)
    return table


def plan_table(plan: "Plan") -> RenderableType:
    """Which teacher layer teaches which student layer, and where it was measured, how alike all layers are."""
    from kdalign.alignment.propose import map_similarities

    table = new_table(f"{plan.teacher.model_type} teaches {plan.student.model_type}")
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
    heat = [_heat_map(plan, one) for one in plan.maps if one.student_stack in plan.similarities]
    return Group(table, *heat, *(plain_text(f"· {shorten(note, LONGEST_NOTE)}", style="dim") for note in notes))


_NUMBERS_FIT = 12
_SHADES = " ░▒▓█"


def _heat_map(plan: "Plan", one: "LayerMap") -> RenderableType:
    """How alike the layers of two stacks are: numbers where they fit, else shades; mapped layers are starred."""
    alike = plan.similarities[one.student_stack]
    numbers = len(alike[0]) <= _NUMBERS_FIT
    table = Table(box=None, padding=0, title=plain_text(f"likeness (CKA), {one.student_stack}"), title_justify="left")
    table.add_column("", min_width=3)
    for layer in range(len(alike[0])):
        table.add_column(f" {layer:>4} " if numbers else f"{layer % 10} ", no_wrap=True)
    for ours, values in enumerate(alike):
        cells = []
        for theirs, value in enumerate(values):
            star = "*" if (ours, theirs) in one.pairs else " "
            level = min(max(value, 0.0), 1.0)
            shown = f"{value:4.2f}{star}" if numbers else _SHADES[round(4 * level)] + star
            red, green, blue = int(40 + 180 * level), int(40 + 170 * level), int(90 - 40 * level)
            style = (
                f"{'bold ' if star == '*' else ''}{'black' if level > 0.5 else 'white'} on rgb({red},{green},{blue})"
            )
            cells.append(Text(shown, style=style))
        table.add_row(str(ours), *cells)
    return Group(Text(""), table)
