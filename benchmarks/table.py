"""The tables of a measurement: for the terminal by Rich, and for the documentation in Markdown.

A measurement is a dictionary as `benchmarks.run` keeps it in JSON; nothing is measured here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import turns as statistic
from benchmarks.settings import GROUPS
from benchmarks.turns import Spread, Turn

EMPTY = "–"


def cell(spread: Spread | None, form: str = ",.0f", unit: str = "") -> str:
    """Show a median and, of several turns, its spread."""
    if spread is None:
        return EMPTY
    median = f"{spread.median:{form}}{unit}"
    return median if spread.n == 1 else f"{median} ({spread.least:{form}} to {spread.most:{form}})"


def score_cell(turns: Sequence[Turn], when: str, counted: str) -> str:
    """Show the accuracy of a student in per cent, and what it took to get there."""
    found = statistic.scores(turns, when)
    if not found:
        return EMPTY
    return ", ".join(
        f"{100 * each['accuracy']:.1f} ({each[counted]:,.0f}{' s' * (counted == 'seconds')})" for each in found
    )


def headings(kept: Mapping[str, Any], group: str) -> list[str]:
    """Return the headings of a group's columns."""
    names, limits = ["", "samples/s", "tokens/s", "CPU s", "GiB", "peak", "× kdalign"], kept["settings"]
    if is_scored(kept, group):
        names.append(f"accuracy at {limits['accuracy_steps']:,} steps (s)")
        names.append(f"at {limits['accuracy_seconds']:,.0f} s (steps)")
    return names


def is_scored(kept: Mapping[str, Any], group: str) -> bool:
    """Return whether the students of a group were scored."""
    return GROUPS[group].scored and kept["settings"]["accuracy_steps"] > 0


def lines(kept: Mapping[str, Any], group: str) -> Iterator[list[str]]:
    """Return the cells of each row of a group."""
    rows = [row for row in kept["rows"] if row["group"] == group]
    flops = kept["flops"][GROUPS[group].models]
    width = len(headings(kept, group))
    reference = by_number(rows[0]) if rows[0]["peer"] == "kdalign" else {}
    for row in rows:
        numbered = by_number(row)
        done = list(numbered.values())
        if not done:
            yield [f"{row['peer']}, {row['what']}: {row['error']}", *[EMPTY] * (width - 1)]
            continue
        work = flops["student"] + (flops["teacher"] if row["teacher"] else 0.0)
        speed = statistic.measure(done, "samples_per_second")
        cells = [
            name_of(row, numbered),
            cell(speed, ",.1f" if speed and speed.median >= 10 else ".2f"),
            cell(statistic.measure(done, "tokens_per_second")),
            cell(statistic.measure(done, "cpu_seconds"), ",.1f"),
            cell(statistic.measure(done, "gib"), ".2f"),
            cell(percent(statistic.share(done, work, kept["peaks"])), ".0f", " %"),
            cell(statistic.ratio(numbered, reference), ".2f"),
        ]
        if is_scored(kept, group):
            cells += [score_cell(done, "after_steps", "seconds"), score_cell(done, "after_seconds", "steps")]
        yield cells


def by_number(row: Mapping[str, Any]) -> dict[int, Turn]:
    """Return a row's turns by their number, from 0; those that failed are left out."""
    return {turn["turn"]: turn for turn in row["turns"]}


def percent(spread: Spread | None) -> Spread | None:
    """Return a share in per cent."""
    return spread and Spread(100 * spread.median, 100 * spread.least, 100 * spread.most, spread.n)


def name_of(row: Mapping[str, Any], turns: Mapping[int, Turn]) -> str:
    """Name a row, with its precision; a star is for a busy machine."""
    precision = "/".join(sorted({turn["precision"] for turn in turns.values()}))
    return f"{row['peer']}, {row['what']} ({precision}){'*' if statistic.busy(turns) else ''}"


def notes(kept: Mapping[str, Any]) -> list[str]:
    """Say how the table was made: turns, machine, versions and what the columns mean."""
    machine, settings, peaks = kept["machine"], kept["settings"], kept["peaks"]
    libraries = machine["libraries"]
    products = " and ".join(f"{peak / 1e9:,.0f} in {precision}" for precision, peak in peaks.items())
    made = (
        f"Medians of at most {settings['turns']} turns with the least and the largest; every turn is a new process, "
        f"and the rows take turns. {kept['created']}, {machine['processor']}, {machine['threads']} of "
        f"{machine['cpus']} cores, torch {libraries['torch']}, transformers {libraries['transformers']}. "
        f"Peak of matrix products: {products} GFLOP/s; memory: {kept['bandwidth'] / 1e9:,.1f} GB/s. "
        f"All in {kept['minutes']:,.0f} minutes."
    )
    meaning = (
        "Tokens are real ones, without padding. CPU s: processor time for 1,000 samples. Peak: the matrix products "
        "that the real tokens need, as a share of what this machine does in the row's precision. × kdalign: samples "
        "a second in units of the first row's, of the same turn."
    )
    return [made, meaning, *troubles(kept), *caching(kept), *versions(kept)]


def troubles(kept: Mapping[str, Any]) -> Iterator[str]:
    """Say which turns other processes disturbed, and which failed."""
    names = [f"{row['peer']}, {row['what']}" for row in kept["rows"]]
    found = [statistic.busy(by_number(row)) for row in kept["rows"]]
    disturbed = [f"{name} ({', '.join(map(str, turns))})" for name, turns in zip(names, found, strict=True) if turns]
    if disturbed:
        yield f"Rows with a star: other processes were at work in these turns: {'; '.join(disturbed)}."
    for name, row in zip(names, kept["rows"], strict=True):
        if row["error"] and row["turns"]:
            yield f"{name}: {len(row['turns'])} turns only; another one failed: {row['error']}"
    if kept["other_cores"] > statistic.MOST_OTHERS:
        yield f"Other processes kept {kept['other_cores']:.1f} cores busy while the peaks were measured."


def caching(kept: Mapping[str, Any]) -> Iterator[str]:
    """Say how long it took to fill the cache that a row reads, which is not in its figures."""
    for row in kept["rows"]:
        if row["variant"] == "cached" and len(row["turns"]) > 1:
            first, *later = (turn["preparing_seconds"] for turn in row["turns"])
            yield (
                f"The cache was filled before the clock started: the first turn prepared for {first:.0f} s, a later "
                f"one for {min(later):.0f} s."
            )


def versions(kept: Mapping[str, Any]) -> Iterator[str]:
    """Say the versions of the peers, and which had a torch of their own."""
    pinned = [package for packages in kept["versions"].values() for package in packages]
    if pinned:
        yield f"Peers: {', '.join(pinned)}."
    shared = kept["machine"]["libraries"]["torch"]
    for peer in dict.fromkeys(row["peer"] for row in kept["rows"]):
        others = {turn["torch"] for row in kept["rows"] if row["peer"] == peer for turn in row["turns"]} - {shared}
        if others:
            own = ", ".join(sorted(others))
            yield f"{peer} ran with torch {own}, since its compiled part does not load with {shared}."


def groups_of(kept: Mapping[str, Any]) -> list[str]:
    """Return the groups that were measured, in order."""
    return list(dict.fromkeys(row["group"] for row in kept["rows"]))


def show(kept: Mapping[str, Any], console: Console) -> None:
    """Print the tables."""
    for group in groups_of(kept):
        first, *others = headings(kept, group)
        table = Table(title=GROUPS[group].title, title_justify="left")
        table.add_column(first, min_width=22, overflow="fold")
        for name in others:
            table.add_column(name, justify="right")
        for cells in lines(kept, group):
            table.add_row(*cells)
        console.print(table)
    for note in notes(kept):
        console.print(note, highlight=False)


def markdown(kept: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    parts = []
    for group in groups_of(kept):
        names = headings(kept, group)
        rule = "|---|" + "---:|" * (len(names) - 1)
        body = [" | ".join(each.replace("|", "\\|") for each in cells) for cells in lines(kept, group)]
        rows = [f"| {line} |" for line in (" | ".join(names), *body)]
        parts.append("\n".join([f"**{GROUPS[group].title}**", "", rows[0], rule, *rows[1:]]))
    return "\n\n".join([*parts, *notes(kept), f"```text\n{kept['command']}\n```"])
