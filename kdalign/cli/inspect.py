"""Commands that look at models: profile, map-layers, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.console import new_watcher, show, tell
from kdalign.cli.options import AllowCode, Device, app, examples, trust_code
from kdalign.errors import UsageError


@app.command(
    epilog=examples(
        'kdalign inspect runs/mine --text "a warm, funny film"',
        'kdalign inspect runs/mine --text "a warm, funny film" --head 3 --plots pictures',
        'kdalign inspect runs/pairs --text "A man sleeps." --text "He is awake." --examples 20',
    )
)
def inspect(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run with a teacher.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="What both models read; twice for a task over pairs. Else an example they differ on."),
    ] = None,
    head: Annotated[
        int | None, typer.Option(min=0, help="The attention head that is drawn, from 0. Default their mean.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="So many examples on which the two differ most.")] = 5,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw layers and attention there (PNG and SVG).")
    ] = None,
    device: Device = None,
    allow: AllowCode = None,
) -> None:
    """Look into a run: how alike student and teacher became, layer by layer, and where they still differ.

    Both models are loaded, and the student's start is made again by the recipe: teacher and data must be where the run
    found them.
    """
    from kdalign.runs.disagreements import find_disagreements
    from kdalign.runs.finished import finished_runs
    from kdalign.runs.integrity import check_weights
    from kdalign.runs.record import read_record

    trust_code(allow)
    read_record(Path(run))  # says what is there instead
    found = finished_runs([run])
    for one in found:
        check_weights(one.folder.path, one.record)
    if len(found) != 1:
        raise UsageError(f"{run!r} holds {len(found)} runs: name one of {', '.join(str(r.folder.path) for r in found)}")
    if plots is not None:
        from kdalign.report.plots import check_folder

        check_folder(plots)
    differing = find_disagreements(found[0], max(examples, 1))
    watcher = new_watcher()
    from kdalign.distillation.inspection import attention_on_text, layer_similarity, load_pair, most_disagreeing_text

    pair = load_pair(found[0], device or "auto", watcher)
    look = attention_on_text(pair, text or most_disagreeing_text(pair, differing), head)
    likeness = layer_similarity(pair)
    from kdalign.report.inspection import inspection_table

    show(inspection_table(likeness, look, differing if examples else None))
    if plots is not None:
        from kdalign.report.plots import draw_attention, draw_likeness, save_all

        words = f", {likeness.tokens:,} tokens of {found[0].record.task}'s training text"
        pictures = [draw_likeness(likeness.before, likeness.after, likeness.pairs, words)]
        if look.maps:
            pictures.append(draw_attention(look.maps, look.student_tokens, look.teacher_tokens, head))
        files = save_all(pictures, plots)
        tell(f"pictures: {', '.join(map(str, files))}")
