"""Plots of finished runs: terms of the objective, their shares and gradients, and the student's own texts by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdalign.comparison.rows import common_name
from kdalign.comparison.table import ComparisonTable
from kdalign.metrics.arrays import Array
from kdalign.report.plots.comparisons import draw_calibration, draw_differences, draw_quality, primary_columns
from kdalign.report.plots.figure import (
    COLOURS,
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
from kdalign.runs.curves import Curves, read_curves
from kdalign.runs.disagreements import read_answers
from kdalign.runs.finished import FinishedRun

POINTS = 80
"""Maximum points of a smoothed line; each is the mean of equally many steps."""
MOST_RAW = 4
"""Runs up to which single steps are drawn; with more, they would hide the lines."""
MOST_LOOKS = 24
"""Maximum recipes in one plot; with more, colours and dashes would repeat."""


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
    for column in primary_columns(comparison):
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
    smooth += f", at the end of every {thinned}th step alone" if thinned > 1 else ""
    alike = "; runs that differ by seed alone share a colour" if len(groups) < len(trained) else ""
    caption = (
        f"Each term of the objective before its weight, {smooth}. {_counted(trained)}{alike}. "
        f"Dotted: where gradients were clipped ({', '.join(f'{clip:g}' for clip in clips)})."
        f"{name_shown(len(drawn), of, 'recipes')}"
    )
    lasts = [f"{each.name} ends at a loss of {each.loss[-1]:.3g}" for each in trained]
    task = trained[0].task
    said = f"Line chart over steps. {'; '.join(lasts)}."
    return NamedFigure(f"terms-{file_part(task)}", figure, f"Terms of the objective: {task}", caption, said)


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
    caption = f"{what}. {_counted(trained)}.{name_shown(len(trained), of)}"
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
        f"micro-batch, without the other terms. {_counted(trained)}.{name_shown(len(trained), of)}"
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
    told += f", at the end of every {thinned}th step alone" if thinned > 1 else ""
    caption = (
        f"On-policy steps; lines: means of neighbouring ones. {_counted(shown)}. {told}."
        f"{name_shown(len(drawn), len(groups), 'recipes')}"
    )
    lasts = [(each.name, each.samples["length"]) for each in shown if "length" in each.samples]
    said = "; ".join(f"{name} ends at {values[~np.isnan(values)][-1]:.0f} tokens a text" for name, values in lasts)
    return NamedFigure("samples", figure, "The student's own texts", caption, f"Line chart over steps. {said}.")


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
