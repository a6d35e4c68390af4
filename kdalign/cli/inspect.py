"""`kdalign inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import new_watcher, show, tell
from kdalign.cli.options import AllowCode, Device, trust_code
from kdalign.errors import UsageError

if TYPE_CHECKING:
    from kdalign.runs.finished import FinishedRun


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
        typer.Option(
            help="Text for both models; twice for a task over pairs. Otherwise an example on which they differ."
        ),
    ] = None,
    head: Annotated[
        int | None, typer.Option(min=0, help="Attention head to draw, from 0. Default the mean of all.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Number of examples on which the models differ most.")] = 5,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw layers and attention into this folder (PNG and SVG).")
    ] = None,
    device: Device = "auto",
    allow: AllowCode = None,
) -> None:
    """Inspect a run: similarity of student and teacher layer by layer, and examples on which they still differ.

    Of a run over images or speech the example is one of its data; it takes no --text. Both models are loaded, and the
    student's start is rebuilt from the recipe: teacher and data must be where the run read them.
    """
    trust_code(allow)
    finished = _finished_run(run)
    if plots is not None:
        from kdalign.report.plots import check_folder

        check_folder(plots)
    from kdalign.runs.disagreements import find_disagreements

    differing = find_disagreements(finished, max(examples, 1))
    watcher = new_watcher()
    from kdalign.distillation.inspection import attention_on, find_example, layer_similarity, load_pair

    pair = load_pair(finished, device, watcher)
    attention = attention_on(pair, find_example(pair, text or (), differing), head)
    similarity = layer_similarity(pair)
    from kdalign.report.inspection import inspection_table

    show(inspection_table(similarity, attention, differing if examples else None))
    if plots is not None:
        from kdalign.report.plots import draw_attention, draw_likeness, save_all

        unit = "tokens" if attention.modality == "text" else "positions"
        words = f", {similarity.tokens:,} {unit} of {finished.record.task}'s train"
        pictures = [draw_likeness(similarity.before, similarity.after, similarity.pairs, words)]
        if attention.maps:
            pictures.append(draw_attention(attention.maps, attention.student_tokens, attention.teacher_tokens, head))
        files = save_all(pictures, plots)
        tell(f"pictures: {', '.join(map(str, files))}")


def _finished_run(path: str) -> "FinishedRun":
    """The run at a path, its weights checked.

    Raises:
        UsageError: no run, or several.
    """
    from kdalign.runs.finished import finished_runs
    from kdalign.runs.integrity import check_weights
    from kdalign.runs.record import read_record

    read_record(Path(path))  # its error describes what is there
    runs = finished_runs([path])
    for run in runs:
        check_weights(run.folder.path, run.record)
    if len(runs) != 1:
        raise UsageError(f"{path!r} holds {len(runs)} runs: name one of {', '.join(str(r.folder.path) for r in runs)}")
    return runs[0]
