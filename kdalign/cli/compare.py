"""The command that puts runs and evaluations into one table: compare."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdalign.cli.console import as_text, error_console, new_watcher, show, tell
from kdalign.cli.options import AllowCode, Json, app, examples, trust_code
from kdalign.errors import RunError, UsageError, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdalign.comparison.gates import GateResult
    from kdalign.comparison.table import ComparisonTable
    from kdalign.runs.discovery import BaselineRow

_ROWS, _GATES, _FILES = "Rows and columns", "Checks and gates", "Forms and files"


@app.command(
    epilog=examples(
        "kdalign compare runs/labels runs/soft runs/joint",
        "kdalign compare runs --out table.tex",
        "kdalign compare runs --sort retained --filter 'retained>=95' --filter name~joint",
        "kdalign compare runs/joint runs/labels --steps-to accuracy=85 --transpose",
        "kdalign compare runs runs/eval --format csv",
        "kdalign compare runs --reference examples/paper-table-1.yaml",
        "kdalign compare runs/labels runs/soft runs/joint --against labels",
        "kdalign compare runs/joint --beside int8,majority",
        "kdalign compare runs --verify",
        "kdalign compare runs --out report.html",
        "kdalign compare runs --plots pictures",
        "kdalign compare runs --baseline table.json --max-drop accuracy=0.5 --require 'retained>=97'",
    )
)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN|FILE...", help="Runs, evaluation files, or folders of either."),
    ],
    metrics: Annotated[
        str | None, typer.Option(help="Columns to show, separated by commas.", rich_help_panel=_ROWS)
    ] = None,
    sort: Annotated[str | None, typer.Option(help="The column to sort by, best first.", rich_help_panel=_ROWS)] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="Rows to show: 'retained>=95' (>=, <=, >, <, =) or name~TEXT; repeatable, all must hold.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help="Test all other rows of runs against this one: paired by example and seed, Holm-corrected.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    steps_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="The first step that reached it on the watched texts; repeatable.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Rows that others have published (YAML or JSON), shown apart; repeatable.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="rich, markdown, latex, csv, json or html (one page with pictures); else by --out's ending, or rich.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="Rows that cost nothing to train: int8 (the teacher, quantised), majority (train's most frequent "
            "class); with commas.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Take every score from the kept answers again, and check the weights.",
            rich_help_panel=_GATES,
        ),
    ] = False,
    transpose: Annotated[
        bool, typer.Option("--transpose", help="Models as columns, metrics as rows.", rich_help_panel=_ROWS)
    ] = False,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the table there instead (.md .tex .csv .json .html .txt).",
            rich_help_panel=_FILES,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Draw training, quality against cost, and calibration there (PNG and SVG).",
            rich_help_panel=_FILES,
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE",
            help="Fail (exit code 1) unless a column holds, such as 'retained>=97'; >= > <= < =.",
            rich_help_panel=_GATES,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An earlier table in JSON, a run or an evaluation, for --max-drop.",
            rich_help_panel=_GATES,
        ),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=X",
            help="Fail where a column is worse than the baseline's by more than X, in its unit.",
            rich_help_panel=_GATES,
        ),
    ] = None,
    allow: AllowCode = None,
) -> None:
    """Put runs side by side: scores, agreement, what was retained, and what it costs.

    Runs of one recipe that differ by seed alone become one row, their mean.
    The best student of a column is bold, the second underlined. In a folder of
    runs, unfinished and foreign ones are passed over, with a note; one whose
    files or record were changed after it ended is refused.
    --format html makes one file that needs no network: tables, pictures, examples
    on which students differ from their teacher, recipes and commands.
    Gates are checked on students and evaluated models, all of them, and said
    below the table; where one fails, the exit code is 1.
    """
    trust_code(allow)
    if form is not None and as_json:
        raise UsageError("give --json or --format, not both")
    if plots is not None:
        from kdalign.report.plots import check_folder

        check_folder(plots)
    from kdalign.report.formats import form_for

    form = form_for("json" if as_json else form, out)
    if out is not None:
        from kdalign.files import check_file

        check_file(out)
    from kdalign.comparison.compare import CompareOptions, build_table
    from kdalign.comparison.gates import check_gates
    from kdalign.runs.discovery import discover

    names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics is not None else None
    if names == []:
        raise UsageError(f"--metrics {metrics!r} names no column")
    options = CompareOptions(names, sort, filters or (), steps_to or (), against, reference or ())
    sources = discover(runs)
    found = build_table(sources, options, _beside(runs, beside) if beside is not None else ())
    gated = require or max_drop
    whole = (
        build_table(sources, CompareOptions(steps_to=steps_to or ())) if gated and (names or filters) else found
    )  # a gate may be on what is not shown
    gates = check_gates(whole, require or (), max_drop or (), baseline)
    if plots is not None:
        _draw(found, runs, plots)
    if verify:
        found = replace(found, notes=(*found.notes, *_verified(runs)))
    _print(found, form, transpose, runs, gates, out)
    failed = sum(not gate.passed for gate in gates)
    if failed:
        raise RunError(f"{failed} of {len(gates)} gates failed")


def _print(
    found: "ComparisonTable",
    form: str,
    transpose: bool,
    runs: Sequence[str],
    gates: "Sequence[GateResult]",
    out: Path | None,
) -> None:
    """The table with its gates: on stdout, or in a file; gates that a form has no place for go to stderr."""
    from kdalign.comparison.gates import append_gates
    from kdalign.report.formats import comparison_as

    if form == "html":
        from kdalign.report.html import render_html
        from kdalign.runs.finished import finished_runs

        with_gates = replace(found, notes=(*found.notes, *(gate.line for gate in gates)))
        with error_console().status("making the page"):
            shown: RenderableType = render_html(with_gates, finished_runs(runs), transpose)
    else:
        shown = comparison_as(found, form, transpose)
    table = append_gates(shown, form, gates)
    lines = "".join(f"{printable(gate.line)}\n" for gate in gates)
    if out is None:
        show(table)
        if form == "rich":
            print(lines, end="")
        elif form not in ("markdown", "json"):
            print(lines, end="", file=sys.stderr)
        return
    from kdalign.files import write_text

    write_text(out, as_text(table) + (lines if form == "rich" else ""))
    tell(f"written: {out}")
    print(lines, end="", file=sys.stderr)


def _draw(found: "ComparisonTable", runs: Sequence[str], folder: Path) -> None:
    from kdalign.report.plots import figures_of, save_all
    from kdalign.runs.finished import finished_runs

    files = save_all(figures_of(found, finished_runs(runs)), folder)
    tell(f"pictures: {len(files)} files in {folder}")


def _verified(runs: Sequence[str]) -> tuple[str, ...]:
    """What is said of scores that were taken again and agree."""
    with error_console().status("verifying"):
        from kdalign.evaluation.rescoring import rescore

        found = rescore(runs)
    found.check()
    return found.notes


def _beside(runs: Sequence[str], kinds: str) -> "list[BaselineRow]":
    from kdalign.distillation.baseline_rows import build_baseline_rows

    named = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    if not named:
        raise UsageError(f"--beside {kinds!r} names nothing")
    return build_baseline_rows(runs, named, new_watcher)
