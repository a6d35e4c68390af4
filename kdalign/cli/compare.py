"""The command that puts runs and evaluations into one table: compare."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdalign.cli.shared import Json, app, as_text, error_console, examples, new_watcher, show
from kdalign.errors import RunError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdalign.entries import Beside


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
    metrics: Annotated[str | None, typer.Option(help="Columns to show, separated by commas.")] = None,
    sort: Annotated[str | None, typer.Option(help="The column to sort by, best first.")] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="Rows to show: 'retained>=95' (>=, <=, >, <, =) or name~TEXT; repeatable, all must hold.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help="Test all other rows of runs against this one: paired by example and seed, Holm-corrected.",
        ),
    ] = None,
    steps_to: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="The first step that reached it on the watched texts; repeatable."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Rows that others have published (YAML or JSON), shown apart; repeatable."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="rich, markdown, latex, csv, json or html (one page with pictures); else by --out's ending, or rich.",
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="Rows that cost nothing to train: int8 (the teacher, quantised), majority (train's most frequent "
            "class); with commas."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Take every score from the kept answers again, and check the weights.")
    ] = False,
    transpose: Annotated[bool, typer.Option("--transpose", help="Models as columns, metrics as rows.")] = False,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the table there instead (.md .tex .csv .json .html .txt)."),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw training, quality against cost, and calibration there (PNG and SVG)."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE", help="Fail (exit code 1) unless a column holds, such as 'retained>=97'; >= > <= < =."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier table in JSON, a run or an evaluation, for --max-drop."),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=X", help="Fail where a column is worse than the baseline's by more than X, in its unit."
        ),
    ] = None,
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
    if form is not None and as_json:
        raise UsageError("give --json or --format, not both")
    if plots is not None:
        from kdalign.pictures import check_folder

        check_folder(plots)
    from kdalign.formats import comparison_as, form_for

    form = form_for("json" if as_json else form, out)
    from kdalign.comparison import compare as put_together

    names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics else None
    found = put_together(
        runs,
        names,
        sort,
        reference or (),
        filters=filters or (),
        steps_to=steps_to or (),
        beside=_beside(runs, beside) if beside else (),
        against=against,
    )
    if plots is not None:
        from kdalign.evidence import finished_runs
        from kdalign.pictures import pictures_of, save_all

        files = save_all(pictures_of(found, finished_runs(runs)), plots)
        error_console().print(f"pictures: {len(files)} files in {plots}", highlight=False)
    if verify:
        found = replace(found, notes=(*found.notes, *_verified(runs)))
    from kdalign.gates import below, check_gates

    whole = put_together(runs) if names is not None or filters else found  # a gate may be on what is not shown
    checked = check_gates(whole, require or (), max_drop or (), baseline)
    if form == "html":
        from kdalign.evidence import finished_runs
        from kdalign.page import page

        with_gates = replace(found, notes=(*found.notes, *(one.line for one in checked)))
        shown: RenderableType = page(with_gates, finished_runs(runs))
    else:
        shown = comparison_as(found, form, transpose)
    table = below(shown, form, checked)
    lines = "".join(f"{one.line}\n" for one in checked)
    if out is None:
        show(table)
    else:
        from kdalign.files import check_writable, write_text

        check_writable(out.parent)
        write_text(out, as_text(table) + (lines if form == "rich" else ""))
        error_console().print(f"written: {out}", highlight=False)
    if out is None and form == "rich":
        print(lines, end="")
    elif out is not None or form not in ("markdown", "json"):
        print(lines, end="", file=sys.stderr)
    failed = sum(not one.passed for one in checked)
    if failed:
        raise RunError(f"{failed} of {len(checked)} gates failed")


def _verified(runs: Sequence[str]) -> tuple[str, ...]:
    """What is said of scores that were taken again and agree."""
    with error_console().status("verifying"):
        from kdalign.verification import verify

        found = verify(runs)
    found.check()
    return found.notes


def _beside(runs: Sequence[str], kinds: str) -> "list[Beside]":
    from kdalign.beside import rows_beside

    return rows_beside(runs, [kind.strip() for kind in kinds.split(",") if kind.strip()], new_watcher)
