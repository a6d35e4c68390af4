"""`kdalign card`."""

from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import error_console, tell
from kdalign.errors import UsageError


@app.command(epilog=examples("kdalign card runs/mine", "kdalign card runs/mine --out runs/mine/student/README.md"))
def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the card to this file.")] = None,
) -> None:
    """Print the model card of a run's student: metadata for the hub, scores, training, data, limits, use, recipe.

    Each run writes the card into the folder of its student; this command also makes it for older runs.
    """
    from kdalign.files import check_file, write_text
    from kdalign.runs.integrity import read_checked

    if out is not None:
        check_file(out)
    record = read_checked(run)
    if not run.is_dir():
        raise UsageError(f"give the run's folder, not {str(run)!r}: the student in it is read as well")
    with error_console().status("loading"):
        from kdalign.runs.model_card import model_card

        text = model_card(record, run)
    if out is None:
        print(text, end="")
        return
    write_text(out, text)
    tell(f"written: {out}")
