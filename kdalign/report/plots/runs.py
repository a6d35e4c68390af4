"""Plots of finished runs: training curves, quality against cost, differences, calibration."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdalign.comparison.rows import common_name
from kdalign.comparison.table import ALIKE, Cell, Column, ComparisonTable, Row
from kdalign.errors import printable
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import reliability_bins
from kdalign.report.plots.figure import (
    COLOURS,
    INK,
    QUIET,
    NamedFigure,
    legend,
    line_style,
    panels,
    plot_style,
    shortened,
)
from kdalign.runs.curves import Curves, read_curves
from kdalign.runs.disagreements import SplitAnswers, read_answers
from kdalign.runs.finished import FinishedRun

POINTS = 80
"""Maximum points of a smoothed line; each is the mean of equally many steps."""
MOST_RAW = 4
"""Runs up to which single steps are drawn; with more, they would hide the lines."""
MOST_NAMES = 12
"""Models up to which all are named; with more, only teachers and those on the Pareto front."""
MOST_LOOKS = 24
"""Maximum recipes in one plot; with more, colours and dashes would repeat."""
MOST_PANELS = 12
"""Maximum runs with a panel of their own in one plot; a page with hundreds of panels took minutes."""
COSTS = ("latency", "parameters")


def figures_of(comparison: ComparisonTable, runs: Sequence[FinishedRun]) -> list[NamedFigure]:
    """Draw all plots that records, histories and kept predictions allow."""
    trained = [found for found in map(read_curves, runs) if found is not None]
    answered = [found for found in map(read_answers, runs) if found is not None and found.student_logits is not None]
    tasks = list(dict.fromkeys(each.task for each in trained))
    students = [row.name for row in comparison.rows if row.kind == "student"]
    found = [draw_terms([each for each in trained if each.task == task], students) for task in tasks]
    shared = [each for each in trained if len(each.terms) > 1]
    found += [draw_shares(shared)] if shared else []
    looked = [each for each in shared if len(each.looks)]
    found += [draw_gradients(looked)] if looked else []
    wrote = [each for each in trained if each.samples]
    found += [draw_samples(wrote, students)] if wrote else []
    differences = draw_differences(comparison)
    found += [differences] if differences is not None else []
    for column in _primary(comparison):
        sizes = {run.record.data["reported"][run.split]["n"] for run in runs if run.record.task == column.task}
        picture = draw_quality(comparison, column, sizes.pop() if len(sizes) == 1 else None)
        found += [] if picture is None else [picture]
    for task in dict.fromkeys(each.task for each in answered):
        found.append(draw_calibration([each for each in answered if each.task == task]))
    return found


@plot_style
def draw_terms(trained: Sequence[Curves], students: Sequence[str] = ()) -> NamedFigure:
    """Plot each term before its weight, and the gradient's norm, over the steps of one task's runs.

    Runs of one recipe share a colour: that of their row among ``students`` in other plots.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    groups = _groups(trained)
    drawn = list(groups)[:MOST_LOOKS]
    of = len(groups)
    trained = [each for each in trained if each.group in drawn]
    terms = list(dict.fromkeys(name for each in trained for name in each.terms))
    figure, found = panels(len(terms) + 1, 1.35, share_x=True)
    order = list(dict.fromkeys([*students, *(name for name, _ in groups.values())]))
    handles: dict[str, Any] = {}
    every = 1
    for each in trained:
        colour, dash, _ = line_style(order.index(groups[each.group][0]))
        shown = [(axes, each.terms[name]) for axes, name in zip(found, terms, strict=False) if name in each.terms]
        for axes, values in [*shown, (found[-1], each.gradient_norm)]:
            here = ~np.isnan(values)  # a term may be in some steps alone, such as labels in those on data
            if len(trained) <= MOST_RAW:
                axes.plot(each.steps[here], values[here], color=colour, alpha=0.22, linewidth=0.6)
            size, steps, means = smooth_steps(each.steps[here], values[here])
            every = max(every, size)
            (line,) = axes.plot(steps, means, color=colour, linestyle=dash)
            handles.setdefault(each.group, line)
    for axes, name in zip(found, terms, strict=False):
        axes.set_title(name)
        axes.set_ylabel(" or ".join(dict.fromkeys(each.units[name] for each in trained if name in each.terms)))
        axes.set_ylim(bottom=0)
    clips = sorted({each.clip for each in trained})
    found[-1].set_title("gradient norm, before clipping")
    found[-1].set_ylabel("norm")
    found[-1].set_yscale("log")
    found[-1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    found[-1].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    found[-1].yaxis.set_minor_locator(NullLocator())
    for clip in clips:
        found[-1].axhline(clip, color=QUIET, linewidth=0.8, linestyle=":")
    found[-1].set_xlabel("optimizer step")
    legend(figure, list(handles.values()), ["".join(groups[group]) for group in handles])
    thin = "; thin: every step" if len(trained) <= MOST_RAW else ""
    smooth = f"lines: means of up to {every} steps{thin}" if every > 1 else "every step is drawn"
    thinned = max(each.every for each in trained)
    smooth += f", of every {thinned}th step alone" if thinned > 1 else ""
    alike = "; runs that differ by seed alone share a colour" if len(groups) < len(trained) else ""
    caption = (
        f"Each term of the objective before its weight, {smooth}. {_counted(trained)}{alike}. "
        f"Dotted: where gradients were clipped ({', '.join(f'{clip:g}' for clip in clips)})."
        f"{_first(len(drawn), of, 'recipes')}"
    )
    lasts = [f"{each.name} ends at a loss of {each.loss[-1]:.3g}" for each in trained]
    task = trained[0].task
    said = f"Line chart over steps. {'; '.join(lasts)}."
    return NamedFigure(f"terms-{_in_a_name(task)}", figure, f"Terms of the objective: {task}", caption, said)


@plot_style
def draw_shares(trained: Sequence[Curves]) -> NamedFigure:
    """Plot each term's share of the loss (weight times value) over the steps, in per cent; a panel per run."""
    trained, of = trained[:MOST_PANELS], len(trained)
    terms = list(dict.fromkeys(name for each in trained for name in each.terms))
    columns = 1 if len(trained) == 1 else 2
    figure, found = panels(len(trained), 1.5, columns)
    handles: dict[str, Any] = {}
    for number, (axes, each) in enumerate(zip(found, trained, strict=True)):
        parts = [smooth_steps(each.steps, values) for values in each.shares.values()]
        colours = [COLOURS[terms.index(name) % len(COLOURS)] for name in each.terms]
        areas = axes.stackplot(parts[0][1], [means for _, _, means in parts], colors=colours, linewidth=0)
        handles |= dict(zip(each.terms, areas, strict=True))
        axes.set_title(shortened(each.name, 24))
        axes.set_ylim(0, 100)
        axes.set_xlim(parts[0][1][0], parts[0][1][-1] if len(parts[0][1]) > 1 else parts[0][1][0] + 1)
        if number % columns == 0:
            axes.set_ylabel("% of the loss")
        else:
            axes.tick_params(labelleft=False)
    for axes in found[-2:]:
        axes.set_xlabel("optimizer step")
    legend(figure, [handles[name] for name in terms], terms)
    what = "Weight times value of each term, in per cent of their sum; means of neighbouring steps"
    caption = f"{what}. {_counted(trained)}.{_first(len(trained), of)}"
    last = [
        f"{each.name}: " + ", ".join(f"{name} {share[-1]:.0f} %" for name, share in each.shares.items())
        for each in trained
    ]
    said = f"Stacked areas over steps. At the end, {'; '.join(last)}."
    return NamedFigure("shares", figure, "Shares of the loss", caption, said)


@plot_style
def draw_gradients(trained: Sequence[Curves]) -> NamedFigure:
    """Plot the norm of each term's weighted gradient over the steps where it was measured; a panel per run."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    trained, of = trained[:MOST_PANELS], len(trained)
    terms = list(dict.fromkeys(name for each in trained for name in each.pulls))
    columns = 1 if len(trained) == 1 else 2
    figure, found = panels(len(trained), 1.5, columns)
    handles: dict[str, Any] = {}
    for axes, each in zip(found, trained, strict=True):
        for name, norms in each.pulls.items():
            colour, dash, marker = line_style(terms.index(name))
            shown = np.where(norms > 0, norms, np.nan)  # a term of weight 0 has no gradient
            (line,) = axes.plot(each.looks, shown, color=colour, linestyle=dash, marker=marker, markersize=3)
            handles.setdefault(name, line)
        axes.set_title(shortened(each.name, 24))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in found[::columns]:
        axes.set_ylabel("norm")
    for axes in found[-2:]:
        axes.set_xlabel("optimizer step")
    legend(figure, list(handles.values()), list(handles))
    caption = (
        "Norm of each weighted term's gradient on the last of the student's layers that it reaches, on one "
        f"micro-batch, without the other terms. {_counted(trained)}.{_first(len(trained), of)}"
    )
    last = [
        f"{each.name}: " + ", ".join(f"{name} {norms[-1]:.2g}" for name, norms in each.pulls.items() if norms[-1] > 0)
        for each in trained
    ]
    said = f"Line chart over steps. At the last measurement, {'; '.join(last)}."
    return NamedFigure("gradients", figure, "Gradient norm of each term", caption, said)


_SAMPLES: Mapping[str, tuple[str, str, float]] = {
    "length": ("length of the student's own texts", "tokens", 1),
    "ended": ("texts that end by an end token", "%", 100),
    "repeated": ("4-grams repeated in a text", "%", 100),
    "distinct": ("2-grams of a step's texts that are distinct", "%", 100),
    "likelihood": ("the teacher's log-likelihood of them", "nats a token", 1),
    "outside": ("tokens outside of the entries that it keeps", "%", 100),
}
"""Title, unit and factor of each measure of the student's own texts."""


@plot_style
def draw_samples(trained: Sequence[Curves], students: Sequence[str] = ()) -> NamedFigure:
    """Plot measures of the student's own texts over the on-policy steps; runs of one recipe share a colour.

    Args:
        trained: runs with such steps.
        students: names in the order of their colours.
    """
    groups = _groups(trained)
    drawn = list(groups)[:MOST_LOOKS]
    shown = [each for each in trained if each.group in drawn]
    names = [name for name in _SAMPLES if any(name in each.samples for each in shown)]
    figure, found = panels(len(names), 1.35, share_x=True)
    order = list(dict.fromkeys([*students, *(name for name, _ in groups.values())]))
    handles: dict[str, Any] = {}
    for each in shown:
        colour, dash, _ = line_style(order.index(groups[each.group][0]))
        for axes, name in zip(found, names, strict=True):
            values = _SAMPLES[name][2] * each.samples.get(name, np.full(len(each.steps), np.nan))
            here = ~np.isnan(values)
            if here.any():
                _, steps, means = smooth_steps(each.steps[here], values[here])
                (line,) = axes.plot(steps, means, color=colour, linestyle=dash, marker="." if len(steps) == 1 else "")
                handles.setdefault(each.group, line)
    for axes, name in zip(found, names, strict=True):
        axes.set_title(_SAMPLES[name][0])
        axes.set_ylabel(_SAMPLES[name][1])
        if name != "likelihood":
            axes.set_ylim(0, 100 if name in ("ended", "distinct") else None)
    found[-1].set_xlabel("optimizer step")
    legend(figure, list(handles.values()), ["".join(groups[group]) for group in handles])
    alarms = [
        f"{each.name}: " + ", ".join(f"{name} in {count:,}" for name, count in each.alarms.items())
        for each in shown
        if each.alarms
    ]
    told = f"Steps with an alarm: {'; '.join(alarms)}" if alarms else "No step has an alarm"
    thinned = max(each.every for each in shown)
    told += f", of every {thinned}th step alone" if thinned > 1 else ""
    caption = (
        f"On-policy steps; lines: means of neighbouring ones. {_counted(shown)}. {told}."
        f"{_first(len(drawn), len(groups), 'recipes')}"
    )
    lasts = [(each.name, each.samples["length"]) for each in shown if "length" in each.samples]
    said = "; ".join(f"{name} ends at {values[~np.isnan(values)][-1]:.0f} tokens a text" for name, values in lasts)
    return NamedFigure("samples", figure, "The student's own texts", caption, f"Line chart over steps. {said}.")


def _primary(comparison: ComparisonTable) -> list[Column]:
    """The macro mean, if there is one, and the main column of each task."""
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
        for column in [*_primary(comparison), *(each for each in comparison.columns if each.key == "agreement")]
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
    name = f"quality-{_in_a_name(column.key)}"
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
        f"{_first(len(answered), of)}"
    )
    name = f"calibration-{_in_a_name(first.task)}"
    title = f"Calibration: {first.task}"
    return NamedFigure(name, figure, title, caption, f"Reliability diagrams. {'. '.join(said)}.")


def smooth_steps(steps: Array, values: Array) -> tuple[int, Array, Array]:
    """Average equally many neighbouring steps down to at most ``POINTS``: steps per mean, mean steps, mean values."""
    size = -(-len(steps) // POINTS)
    starts = np.arange(0, len(steps), size)
    counts = np.diff(np.append(starts, len(steps)))
    return size, np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _groups(trained: Sequence[Curves]) -> dict[str, tuple[str, str]]:
    """Name and, if there are several, number of seeds of each recipe's runs."""
    names: dict[str, list[str]] = {}
    for each in trained:
        names.setdefault(each.group, []).append(each.name)
    return {
        group: (ours[0], "") if len(ours) == 1 else (common_name(ours), f" ({len(ours)} seeds)")
        for group, ours in names.items()
    }


def _counted(trained: Sequence[Curves]) -> str:
    runs = f"{len(trained)} runs" if len(trained) > 1 else "One run"
    longest = max(int(each.steps[-1]) for each in trained)
    return f"{runs}, up to {longest:,} steps"


def _first(drawn: int, of: int, what: str = "runs") -> str:
    """A sentence on what is drawn, if not all is."""
    return "" if drawn == of else f" Drawn are the first {drawn} of {of:,} {what}."


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


def _in_a_name(text: str) -> str:
    """Make a short part of a file name."""
    return re.sub(r"[^\w.]+", "-", text)[:60]


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
