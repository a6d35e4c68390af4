"""Commands that look at models: profile, map-layers, inspect."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.options import (
    AllowCode,
    Config,
    DataFolder,
    Dataset,
    Device,
    Json,
    TaskName,
    app,
    error_console,
    examples,
    new_watcher,
    show,
    tell,
    trust_code,
)
from kdalign.errors import UsageError, unknown


@app.command(
    epilog=examples(
        "kdalign profile ./teacher runs/mine",
        "kdalign profile ./teacher ./student --seq-len 128,512 --no-weights",
        "kdalign profile ./teacher runs/mine --layers --plot costs.png",
    )
)
def profile(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Hub ids, folders or runs.")],
    seq_len: Annotated[str, typer.Option(help="Lengths in tokens, separated by commas.")] = "128",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a batch, for throughput and memory.")] = 32,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="Precision of what is timed: fp32 or bf16.")] = "fp32",
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Read configurations only; nothing is timed.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer's parameters and FLOPs, too.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw where the costs lie: .png, .svg or .pdf.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The first model's revision on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Show what models cost, side by side: layers, parameters, FLOPs, memory, measured latency and throughput."""
    lengths = _lengths(seq_len)
    if dtype not in ("fp32", "bf16"):
        raise unknown("--dtype", dtype, ("fp32", "bf16"))
    if plot is not None:
        from kdalign.report.plots import check_picture

        check_picture(plot)
    from kdalign.distillation.pipeline import profile_models

    with error_console().status("measuring"):
        profiles = profile_models(models, lengths, batch_size, device or "auto", not no_weights, revision, dtype)
    if plot is not None:
        from kdalign.report.plots import draw_costs

        draw_costs(profiles, plot)
        tell(f"picture: {plot}")
    if as_json:
        print(json.dumps([found.to_json() for found in profiles], indent=2))
        return
    from kdalign.report.tables import profile_table

    show(profile_table(profiles, layers))


@app.command(
    epilog=examples(
        "kdalign map-layers --teacher ./teacher --student layers=3",
        "kdalign map-layers --teacher ./teacher --student ./narrow --map '0:1 1:3 2:5' --out plan.json",
        "kdalign map-layers --teacher ./teacher --student ./other --map cka --task sst2 --data ./sst2 --plot map.png",
    )
)
def map_layers(
    teacher: Annotated[str, typer.Option(help="Hub id or folder of the large model.")],
    student: Annotated[
        str, typer.Option(help="layers=N or layers=half, hub id, folder, or new:TYPE,layers=N,width=N.")
    ] = "layers=half",
    map_: Annotated[
        str,
        typer.Option(
            "--map",
            help="auto, a fixed map, pairs such as '0:1 1:3 2:5', or by likeness: cka, emd, or your "
            "module:function; or learned, a mean of all.",
        ),
    ] = "auto",
    init: Annotated[str, typer.Option(help="Teacher layers a cut student starts from.")] = "uniform",
    task: TaskName = None,
    data: DataFolder = None,
    dataset: Dataset = None,
    config: Config = None,
    examples: Annotated[int, typer.Option(min=1, help="Texts of train that both models read, drawn at random.")] = 512,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Longest input in tokens. Default 128, or the models' positions.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The teacher's revision on the hub.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan, for distill --plan.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw how alike the layers are: .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which teacher layer would teach which student layer, and the projections between them.

    With --task both models read some of its texts, and how alike their layers are (CKA) is shown for every map.
    """
    if out is not None:
        from kdalign.files import check_file

        check_file(out)
    trust_code((), (map_,))
    if plot is not None:
        from kdalign.report.plots import check_picture

        check_picture(plot)
        if task is None:
            raise UsageError("--plot draws how alike layers are, which is measured on text: give --task and --data")
    if task is not None:
        from kdalign.data.tasks import check_named

        check_named(task, data, dataset, config)
    watcher = new_watcher()
    from kdalign.distillation.map_layers import Reading, plan_layers

    reading = Reading(task, data, dataset, config, examples, max_length) if task is not None else None
    plan = plan_layers(teacher, student, map_, init, revision, reading, watcher)
    if plot is not None:
        from kdalign.report.plots import draw_similarities

        draw_similarities(plan, plot)
        tell(f"picture: {plot}")
    if out is not None:
        from kdalign.files import write_text

        write_text(out, plan.to_json())
        tell(f"plan: {out}")
    if as_json:
        print(plan.to_json(), end="")
        return
    from kdalign.report.tables import plan_table

    show(plan_table(plan))


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
    from kdalign.runs.finished import disagreements, finished_runs
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
    differing = disagreements(found[0], max(examples, 1))
    watcher = new_watcher()
    from kdalign.distillation.inspection import layer_likeness, load_pair, looks, some_text

    pair = load_pair(found[0], device or "auto", watcher)
    look = looks(pair, text or some_text(pair, differing), head)
    likeness = layer_likeness(pair)
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


def _lengths(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("[1-9][0-9]{0,6}", word) for word in words):
        raise UsageError(f"--seq-len {text!r}: accepted are lengths up to 9999999 separated by commas, such as 128,512")
    return tuple(int(word) for word in words)
