"""Plots of scores: quality against cost, differences from the baseline, calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdalign.comparison.table import ALIKE, Cell, Column, ComparisonTable, Row
from kdalign.errors import printable
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import reliability_bins
from kdalign.report.plots.figure import (
    COLOURS,
    INK,
    MOST_PANELS,
    QUIET,
    NamedFigure,
    file_part,
    legend,
    line_style,
    name_shown,
    panels,
    plot_style,
    shortened,
)
from kdalign.runs.disagreements import SplitAnswers

MOST_NAMES = 12
"""Models up to which all are named; with more, only teachers and those on the Pareto front."""
COSTS = ("latency", "parameters")


def primary_columns(comparison: ComparisonTable) -> list[Column]:
    """Return the macro mean, if there is one, and the main column of each task."""
    found: dict[str, Column] = {}
    for column in comparison.columns:
        stands = column.key == "macro" or (column.task and not column.detail)
        if stands and not column.cost and not column.published:
            found.setdefault(column.task, column)
    return sorted(found.values(), key=lambda column: column.task != "")


@plot_style
def draw_differences(comparison: ComparisonTable) -> NamedFigure | None:
    """Plot each arm's improvement over the baseline, in points; None for a table without a baseline."""
    rows = [row for row in comparison.rows if row.kind == "difference"]
    columns = [
        column
        for column in [*primary_columns(comparison), *(each for each in comparison.columns if each.key == "agreement")]
        if column.unit == "%" and any(_value(row, column.key) is not None for row in rows)
    ]
    if not columns:
        return None
    students = [row.name for row in comparison.rows if row.kind == "student"]
    figure, (axes,) = panels(1, 0.7 + len(columns) * (0.16 + 0.14 * len(rows)))
    handles: list[Any] = []
    told = []
    for number, row in enumerate(rows):
        arm = row.name.partition(" − ")[0]
        colour, _, marker = line_style(students.index(arm) if arm in students else number)
        for place, column in enumerate(columns):
            cell = row.cells.get(column.key)
            if cell is None or cell.value is None:
                continue
            low, high = _ends(cell)
            y = place + 0.6 * ((number + 0.5) / len(rows) - 0.5)
            face = "white" if cell.verdict == ALIKE else colour
            axes.plot([low, high], [y, y], color=colour, linewidth=1.1, zorder=1)
            axes.plot([cell.value], [y], color=colour, marker=marker, markersize=5, markerfacecolor=face, zorder=2)
            told.append(f"{row.name}, {column.title}: {cell.value:.1f} ({low:.1f} to {high:.1f})")
        (handle,) = axes.plot([], [], color=colour, marker=marker, markersize=5, linewidth=1.1)
        handles.append(handle)
    axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(columns)), [printable(column.title) for column in columns])
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_xlabel("points better")
    legend(figure, handles, [row.name for row in rows])
    caption = (
        "Differences paired by example and seed, with 95 % intervals; filled: better or worse at 5 %, corrected for "
        f"the number of rows; hollow: no evidence.{_seeds(rows)}"
    )
    return NamedFigure("differences", figure, "Better, or noise?", caption, f"Dots with intervals. {'; '.join(told)}.")


@plot_style
def draw_quality(comparison: ComparisonTable, column: Column, n: int | None = None) -> NamedFigure | None:
    """Plot a score against latency and parameters; None if no two models have both.

    A line joins the Pareto front: rows that no cheaper row matches. Bars are 95 % intervals.

    Args:
        comparison: the table; its published rows are not drawn.
        column: column of the score.
        n: number of examples it is computed on, for the caption.
    """
    drawable = [row for row in comparison.rows if row.kind not in ("reference", "difference")]
    rows = [row for row in drawable if _value(row, column.key) is not None]
    costs = [cost for key in COSTS for cost in comparison.columns if cost.key == key]
    drawn = [(cost, [row for row in rows if _value(row, cost.key) is not None]) for cost in costs]
    drawn = [(cost, ours) for cost, ours in drawn if len(ours) > 1]
    if not drawn:
        return None
    figure, found = panels(len(drawn), 2.2)
    students = [row.name for row in rows if row.kind != "teacher"]
    teachers = [row.name for row in rows if row.kind == "teacher"]
    handles: dict[str, Any] = {}
    fronts: dict[str, list[str]] = {}
    for axes, (cost, ours) in zip(found, drawn, strict=True):
        x = np.array([_value(row, cost.key) for row in ours], dtype=float)
        y = np.array([_value(row, column.key) for row in ours], dtype=float)
        best = pareto_front(x, y if column.higher_is_better else -y)
        axes.plot(x[best], y[best], color=QUIET, linewidth=1, zorder=1, gid="front")
        fronts[cost.key] = [ours[number].name for number in best]
        for number, row in enumerate(ours):
            cell = row.cells[column.key]
            style: dict[str, Any] = {"color": INK, "marker": "*", "markersize": 9}
            if row.kind != "teacher":
                colour, _, marker = line_style(students.index(row.name))
                style = {"color": colour, "marker": marker, "markersize": 5.5}
            low, high = _ends(cell)
            bars = [[y[number] - low], [high - y[number]]]
            handle = axes.errorbar(
                [x[number]], [y[number]], bars, linestyle="none", elinewidth=0.8, capsize=2, zorder=2, **style
            )
            named = len(rows) <= MOST_NAMES or row.kind == "teacher" or row.name in fronts[cost.key]
            if named:
                handles.setdefault(row.name, handle)
        axes.set_xlabel(_axis(cost))
        axes.set_ylabel(_axis(column))
        axes.set_xlim(0, 1.1 * x.max())
    order = [name for name in (*teachers, *students) if name in handles]
    legend(figure, [handles[name] for name in order], order)
    better = "higher" if column.higher_is_better else "lower"
    caption = (
        f"{column.title}, {better} is better; bars: 95 % intervals{f', n = {n:,}' if n else ''}. "
        f"Grey line: Pareto front, models that no cheaper one matches. Star: teacher.{_seeds(rows)}"
    )
    said = ". ".join(f"Pareto front by {key}: {', '.join(names)}" for key, names in fronts.items())
    name = f"quality-{file_part(column.key)}"
    return NamedFigure(name, figure, f"{column.title} against cost", caption, f"Scatter plot. {said}.")


@plot_style
def draw_calibration(answered: Sequence[SplitAnswers]) -> NamedFigure:
    """Plot accuracy against confidence (reliability diagrams) of students and teachers; a panel per student."""
    answered, of = answered[:MOST_PANELS], len(answered)
    columns = 1 if len(answered) == 1 else 2
    figure, found = panels(len(answered), 2.05, columns)
    said, n = [], 0
    for number, (axes, each) in enumerate(zip(found, answered, strict=True)):
        assert each.student_logits is not None, "answers are classes"
        assert each.references is not None, "a split that is scored has labels"
        n = len(each.references)
        axes.plot([0, 100], [0, 100], color=QUIET, linewidth=0.8, linestyle=":")
        words = f"{each.name}: "
        sides = (("teacher", each.teacher_logits, INK), ("student", each.student_logits, COLOURS[0]))
        for who, logits, colour in sides:
            if logits is None:
                continue
            bins = reliability_bins(logits, each.references)
            held = bins.counts > 0
            label = f"{who}, ECE {bins.error:.1f} %"
            x, y = 100 * bins.confidence[held], 100 * bins.accuracy[held]
            axes.plot(x, y, color=colour, linewidth=1.1, label=label)
            axes.scatter(x, y, s=4 + 50 * bins.counts[held] / bins.counts.sum(), color=colour, zorder=3, linewidths=0)
            words += f"{label}; "
        said.append(words.rstrip("; "))
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xticks(range(0, 101, 25))
        axes.set_yticks(range(0, 101, 25))
        axes.set_aspect("equal")
        axes.set_title(shortened(each.name, 24))
        axes.legend(loc="upper left", handlelength=1.2, borderpad=0, fontsize=7)
        if number >= len(answered) - 2:
            axes.set_xlabel("confidence (%)")
        if number % columns == 0:
            axes.set_ylabel("accuracy (%)")
    first = answered[0]
    caption = (
        f"{first.task}, {first.split}, n = {n:,}: 15 equal bins of the answer's softmax; a point's size is its "
        f"share of the examples. On the dotted line confidence equals accuracy; ECE: mean distance from it."
        f"{name_shown(len(answered), of)}"
    )
    name = f"calibration-{file_part(first.task)}"
    title = f"Calibration: {first.task}"
    return NamedFigure(name, figure, title, caption, f"Reliability diagrams. {'. '.join(said)}.")


def _seeds(rows: Sequence[Row]) -> str:
    """Sentences on rows that are the mean of several seeds."""
    names: dict[int, list[str]] = {}
    for row in rows:
        if len(row.seeds) > 1:
            names.setdefault(len(row.seeds), []).append(row.name)
    return "".join(f" {', '.join(own)}: mean of {count} seeds." for count, own in names.items())


def _value(row: Row, key: str) -> float | None:
    cell = row.cells.get(key)
    return None if cell is None else cell.value


def _ends(cell: Cell) -> tuple[float, float]:
    assert cell.value is not None, "rows without a value are not drawn"
    return (cell.value if cell.low is None else cell.low), (cell.value if cell.high is None else cell.high)


def _axis(column: Column) -> str:
    title = {"params": "parameters"}.get(column.title, column.title)
    return f"{title} ({column.unit})" if column.unit else title


def pareto_front(cost: Array, quality: Array) -> list[int]:
    """Find the Pareto front: rows that no cheaper row matches, from the cheapest to the best.

    Args:
        cost: (rows,), lower is better.
        quality: (rows,), higher is better.
    """
    best, found = -np.inf, []
    for row in np.lexsort((-quality, cost)).tolist():
        if quality[row] > best:
            best = quality[row]
            found.append(row)
    return found
