"""`kdalign compare`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import as_text, error_console, new_watcher, show, tell
from kdalign.cli.options import AllowCode, Json, split_names, trust_code, with_options
from kdalign.errors import RunError, UsageError, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdalign.comparison.compare import CompareOptions
    from kdalign.comparison.gates import GateResult
    from kdalign.comparison.table import ComparisonTable
    from kdalign.runs.discovery import BaselineRow

_ROWS, _GATES, _FILES = "Rows and columns", "Checks and gates", "Forms and files"


@dataclass(frozen=True)
class RowOptions:
    """Options that choose rows and columns, and what they are tested against."""

    metrics: Annotated[
        str | None, typer.Option(help="Columns to show, separated by commas.", rich_help_panel=_ROWS)
    ] = None
    sort: Annotated[str | None, typer.Option(help="Column to sort by, best first.", rich_help_panel=_ROWS)] = None
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="Rows to show: 'retained>=95' (>=, <=, >, <, =) or name~TEXT; repeatable, all must hold.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help="Test all other rows of runs against this one (its name, or a run's): paired by example and seed, "
            "Holm-corrected.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    steps_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="First step that reached this score on the monitored texts; repeatable.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Published rows (YAML or JSON), shown in a block of their own; repeatable.",
            rich_help_panel=_ROWS,
        ),
    ] = None

    def parse(self) -> "CompareOptions":
        """The same as the comparison takes it.

        Raises:
            UsageError: a filter or a target score that cannot be read, or no column.
        """
        from kdalign.comparison.compare import CompareOptions

        metrics = self.metrics
        names = None if metrics is None else split_names(metrics, f"--metrics {metrics!r} names no column")
        filters, steps_to, references = self.filters or (), self.steps_to or (), self.reference or ()
        return CompareOptions(names, self.sort, filters, steps_to, self.against, references)


@dataclass(frozen=True)
class FormOptions:
    """Options that say in which form a table is shown, and what is added to it."""

    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="rich, markdown, latex, csv, json or html (one page with pictures); otherwise by the ending of --out, "
            "or rich.",
            rich_help_panel=_FILES,
        ),
    ] = None
    beside: Annotated[
        str | None,
        typer.Option(
            help="Baseline rows without training: int8 (the quantised teacher), majority (the most frequent class of "
            "train); with commas.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compute every score again from the saved predictions, and check the weights.",
            rich_help_panel=_GATES,
        ),
    ] = False
    transpose: Annotated[
        bool, typer.Option("--transpose", help="Models as columns, metrics as rows.", rich_help_panel=_ROWS)
    ] = False
    as_json: Json = False
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the table to this file (.md .tex .csv .json .html .txt).",
            rich_help_panel=_FILES,
        ),
    ] = None
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Draw training, quality against cost, and calibration into this folder (PNG and SVG).",
            rich_help_panel=_FILES,
        ),
    ] = None

    def check(self) -> str:
        """Check names of files before anything is read.

        Returns:
            The form.

        Raises:
            UsageError: an unknown form, or a file that cannot be written.
        """
        if self.form is not None and self.as_json:
            raise UsageError("give --json or --format, not both")
        if self.plots is not None:
            from kdalign.report.plots import check_folder

            check_folder(self.plots)
        from kdalign.report.formats import form_for

        form = form_for("json" if self.as_json else self.form, self.out)
        if self.out is not None:
            from kdalign.files import check_file

            check_file(self.out)
        return form


@dataclass(frozen=True)
class GateOptions:
    """Options that fail the command if a score is too low."""

    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE",
            help="Fail (exit code 1) unless a column meets a bound, such as 'retained>=97'; >= > <= < =.",
            rich_help_panel=_GATES,
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Baseline of --max-drop: an earlier table in JSON, a run or an evaluation.",
            rich_help_panel=_GATES,
        ),
    ] = None
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=X",
            help="Fail if a column is worse than the baseline's by more than X, in its unit.",
            rich_help_panel=_GATES,
        ),
    ] = None


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
@with_options
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN|FILE...", help="Runs, evaluation files, or folders of either."),
    ],
    rows: RowOptions,
    form: FormOptions,
    gating: GateOptions,
    allow: AllowCode = None,
) -> None:
    """Compare runs in one table: scores, agreement, share of the teacher's score retained, and costs.

    Runs that differ only by seed become one row, their mean. In each column the best student is bold, the second
    underlined. In a folder of runs, unfinished and foreign folders are skipped with a note; a run whose files or
    record were changed after it ended is refused.
    --format html writes one file that needs no network: tables, pictures, examples on which students differ from their
    teacher, recipes and commands.
    Gates are checked on all students and evaluated models and shown below the table; if one fails, the exit code is 1.
    """
    trust_code(allow)
    kind = form.check()
    options = rows.parse()
    from kdalign.comparison.compare import CompareOptions, build_table
    from kdalign.comparison.gates import check_gates
    from kdalign.runs.discovery import discover

    sources = discover(runs)
    table = build_table(sources, options, _baseline_rows(runs, form.beside) if form.beside is not None else ())
    gated = table
    if (gating.require or gating.max_drop) and (options.metrics or options.filters):  # gates may be on hidden columns
        gated = build_table(sources, CompareOptions(steps_to=options.steps_to))
    gates = check_gates(gated, gating.require or (), gating.max_drop or (), gating.baseline)
    if form.plots is not None:
        _draw(table, runs, form.plots)
    if form.verify:
        table = replace(table, notes=(*table.notes, *_rescore(runs)))
    rendered = _render(table, kind, form.transpose, runs, gates, sources.evaluations)
    _print(rendered, kind, gates, form.out)
    failed = sum(not gate.passed for gate in gates)
    if failed:
        raise RunError(f"{failed} of {len(gates)} gates failed")


def _render(
    table: "ComparisonTable",
    form: str,
    transpose: bool,
    runs: Sequence[str],
    gates: "Sequence[GateResult]",
    evaluations: Sequence[Mapping[str, Any]],
) -> "RenderableType":
    """The table in a form, with its gates if the form has a place for them."""
    from kdalign.report.formats import comparison_as
    from kdalign.report.gates import append_gates

    if form != "html":
        return append_gates(comparison_as(table, form, transpose), form, gates)
    from kdalign.report.html import render_html
    from kdalign.runs.finished import finished_runs

    with_gates = replace(table, notes=(*table.notes, *(gate.line for gate in gates)))
    with error_console().status("making the page"):
        return append_gates(render_html(with_gates, finished_runs(runs), transpose, evaluations), form, gates)


def _print(rendered: "RenderableType", form: str, gates: "Sequence[GateResult]", out: Path | None) -> None:
    """Print or write a table; gates that its form has no place for go to stderr."""
    lines = "".join(f"{printable(gate.line)}\n" for gate in gates)
    if out is None:
        show(rendered)
        if form == "rich":
            print(lines, end="")
        elif form not in ("markdown", "json"):
            print(lines, end="", file=sys.stderr)
        return
    from kdalign.files import write_text

    write_text(out, as_text(rendered) + (lines if form == "rich" else ""))
    tell(f"written: {out}")
    print(lines, end="", file=sys.stderr)


def _draw(table: "ComparisonTable", runs: Sequence[str], folder: Path) -> None:
    from kdalign.report.plots import figures_of, save_all
    from kdalign.runs.finished import finished_runs

    files = save_all(figures_of(table, finished_runs(runs)), folder)
    tell(f"pictures: {len(files)} files in {folder}")


def _rescore(runs: Sequence[str]) -> tuple[str, ...]:
    """Compute the scores of runs again.

    Returns:
        Notes on scores that agree.

    Raises:
        RunError: a score differs.
    """
    with error_console().status("verifying"):
        from kdalign.evaluation.rescoring import rescore

        result = rescore(runs)
    result.check()
    return result.notes


def _baseline_rows(runs: Sequence[str], kinds: str) -> "list[BaselineRow]":
    from kdalign.distillation.baseline_rows import build_baseline_rows

    return build_baseline_rows(runs, split_names(kinds, f"--beside {kinds!r} names nothing"), new_watcher)
