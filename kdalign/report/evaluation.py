"""Results of evaluations as Rich tables, with their footnotes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from kdalign.comparison.notes import REAL_TIME, mark_note
from kdalign.errors import printable, printable_names
from kdalign.report.layout import in_digits
from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line

if TYPE_CHECKING:
    from kdalign.evaluation.result import EvaluationResult
    from kdalign.metrics.classification import Score

MOST_METRICS = 6
"""Metrics of one table; an evaluation with more of them has further tables."""


def evaluation_table(evaluations: Sequence["EvaluationResult"]) -> RenderableType:
    """Render evaluations: a table for each split, a model a row; dashes have their reason in a footnote."""
    splits: dict[tuple[str, str, int, str], list[EvaluationResult]] = {}
    for result in evaluations:
        splits.setdefault((result.task, result.split, result.n, result.source), []).append(result)
    tables: list[RenderableType] = []
    for (task, split, n, source), rows in splits.items():
        metrics = [score.metric for row in rows for score in row.scores]
        metrics += [absent.metric for row in rows for absent in row.absent]
        title = f"{task}, {split}, n = {n:,} of {source}"
        tables.append(_SplitTables(title, f"{task}, further metrics", rows, list(dict.fromkeys(metrics))))
    return Group(*tables, *map(note_line, _footnotes(evaluations)))


@dataclass(frozen=True)
class _SplitTables:
    """One split's scores in as many tables as its metrics need at the console's width; no number is broken.

    Attributes:
        title: title of the first table.
        more: title of further tables.
    """

    title: str
    more: str
    rows: Sequence["EvaluationResult"]
    metrics: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        short = [Path(row.model).name for row in self.rows]
        distinct = len(set(short)) == len({row.model for row in self.rows})
        names = printable_names(short if distinct else [row.model for row in self.rows])
        sizes: list[str] = []
        if len(self.rows) > 1 and any(row.parameters for row in self.rows):
            sizes = [f"{row.parameters / 1e6:,.1f}" if row.parameters else "" for row in self.rows]
        longest_name = max(map(len, ("model", *names)))
        used = min(longest_name, max(8, options.max_width // 4)) + _EDGES
        used += _GAP + max(map(len, ("params", *sizes))) if sizes else 0
        columns = [self._column(metric, options.max_width - used - _GAP) for metric in self.metrics]
        columns += _speed_columns(self.rows)
        for number, part in enumerate(_split_columns(columns, options.max_width - used)):
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
        """A metric's column, without intervals if they do not fit next to the models' names."""
        cells = [_score_cell({score.metric: score for score in row.scores}.get(metric)) for row in self.rows]
        if max(len(line) for cell in cells for line in cell.split("\n")) > room:
            cells = [cell.partition("\n")[0] for cell in cells]
        return _Column(tuple(map(printable, _break_name(metric).split("\n"))), tuple(cells))


@dataclass(frozen=True)
class _Column:
    heading: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        """Width in characters."""
        return max(len(line) for text in (*self.heading, *self.cells) for line in text.split("\n"))


def _speed_columns(rows: Sequence["EvaluationResult"]) -> list[_Column]:
    """Column of the real-time factor, if any model has one."""
    factors = [row.real_time_factor for row in rows]
    if all(factor is None for factor in factors):
        return []
    return [_Column(("RTF",), tuple("–" if factor is None else f"{factor:.3f}" for factor in factors))]


_GAP, _EDGES = 3, 2
"""Characters between two columns of a table, and at its two edges together."""


def _split_columns(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Split columns into tables that fit a width, of at most ``MOST_METRICS``."""
    parts: list[list[_Column]] = [[]]
    for column in columns:
        used = sum(other.width + _GAP for other in parts[-1])
        if parts[-1] and (used + column.width + _GAP > width or len(parts[-1]) == MOST_METRICS):
            parts.append([])
        parts[-1].append(column)
    return parts


def _break_name(metric: str) -> str:
    """A metric's name, on two lines if it is long."""
    metric = metric.replace(" ", "\n")
    head, mark, tail = metric.rpartition("_")
    return f"{head}{mark}\n{tail}" if mark and len(metric) > 8 and "\n" not in metric else metric


def _score_cell(score: "Score | None") -> str:
    if score is None or score.value is None:
        return "–"
    text = in_digits(score.value, 2) + ("*" if score.mark else "")
    if score.low is not None and score.high is not None:
        text += f"\n{in_digits(score.low, 1)} to {in_digits(score.high, 1)}"
    return text


def _footnotes(evaluations: Sequence["EvaluationResult"]) -> list[str]:
    """Footnotes on how scores were computed and why some are missing; each note once."""
    scores = [score for result in evaluations for score in result.scores]
    notes = [mark_note(score.mark) for score in scores if score.mark]
    notes += _signature_notes(evaluations)
    if any(result.real_time_factor is not None for result in evaluations):
        notes.append(f"RTF: {REAL_TIME}")
    if any(score.low is not None for score in scores):
        notes.append("below a score: its 95 % interval over examples")
    notes += _convention_notes(evaluations)
    notes += _baseline_notes(evaluations)
    several_splits = len({(result.task, result.split) for result in evaluations}) > 1
    for result in evaluations:
        notes += result.notes
        notes += _dash_notes(result, name_model=len(evaluations) > 1)
        notes += _file_notes(result, name_split=several_splits)
    return list(dict.fromkeys(notes))


def _signature_notes(evaluations: Sequence["EvaluationResult"]) -> list[str]:
    """Each signature with its metrics; models are named where one metric has several signatures."""
    metrics: dict[str, dict[str, None]] = {}
    models: dict[str, dict[str, None]] = {}
    signatures: dict[str, set[str]] = {}
    for result in evaluations:
        for score in result.scores:
            metric = f"{score.metric} (in {score.unit})" if score.unit else score.metric
            metrics.setdefault(score.signature, {})[metric] = None
            models.setdefault(score.signature, {})[Path(result.model).name] = None
            signatures.setdefault(metric, set()).add(score.signature)
    notes = []
    for signature, names in metrics.items():
        ambiguous = any(len(signatures[name]) > 1 for name in names)
        whose = f" of {', '.join(models[signature])}" if ambiguous else ""
        notes.append(f"{', '.join(names)}{whose}: {signature}")
    return notes


def _convention_notes(evaluations: Sequence["EvaluationResult"]) -> list[str]:
    """Notes of single scores, such as the class that F1 is computed for; models are named unless all share the note."""
    models: dict[tuple[str, str], dict[str, None]] = {}
    for result in evaluations:
        for score in result.scores:
            if score.note:
                models.setdefault((score.metric, score.note), {})[Path(result.model).name] = None
    notes = []
    for (metric, note), names in models.items():
        shared = all(any(s.note == note for s in r.scores if s.metric == metric) for r in evaluations)
        whose = "" if shared else f" of {', '.join(names)}"
        notes.append(f"{metric}{whose}: {note}")
    return notes


def _baseline_notes(evaluations: Sequence["EvaluationResult"]) -> list[str]:
    """Metrics that models have and a baseline does not."""
    notes = []
    for baseline in (result for result in evaluations if result.kind == "baseline"):
        split = (baseline.task, baseline.split, baseline.n)
        same_split = [result for result in evaluations if (result.task, result.split, result.n) == split]
        metrics = dict.fromkeys(metric for result in same_split for metric in _metrics_of(result))
        lacking = [metric for metric in metrics if metric not in _metrics_of(baseline)]
        if lacking:
            notes.append(f"{', '.join(lacking)}: – because the baseline {baseline.model} has none")
    return notes


def _metrics_of(result: "EvaluationResult") -> list[str]:
    return [score.metric for score in result.scores] + [absent.metric for absent in result.absent]


def _dash_notes(result: "EvaluationResult", name_model: bool) -> list[str]:
    """Why a model has no value of a metric; metrics with one reason share a note."""
    metrics: dict[str, list[str]] = {}
    whose = f" ({Path(result.model).name})" if name_model else ""
    for score in result.scores:
        if score.value is None:
            metrics.setdefault(f"– because {score.reason}{whose}", []).append(score.metric)
    for absent in result.absent:
        command = f"; this makes one: {absent.command}" if absent.command else ""
        metrics.setdefault(f"– because {absent.reason}{command}", []).append(absent.metric)
    return [f"{', '.join(names)}: {reason}" for reason, names in metrics.items()]


def _file_notes(result: "EvaluationResult", name_split: bool) -> list[str]:
    """Examples that were truncated or skipped, and the leaderboard's file."""
    name = f"{result.model} on {result.task}, {result.split}" if name_split else result.model
    notes = []
    if result.truncated:
        were = "example was" if result.truncated == 1 else "examples were"
        notes.append(f"{name}: {result.truncated:,} {were} truncated to --max-length")
    if result.passed_over:
        notes.append(f"{name}: {result.passed_over:,} examples have no answer within --max-length")
    if result.submission:
        notes.append(f"leaderboard file: {result.submission}")
    return notes
