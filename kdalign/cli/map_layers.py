"""`kdalign map-layers`."""

from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.console import new_watcher, show, tell
from kdalign.cli.options import Config, DataFolder, Dataset, Json, TaskName, app, examples, trust_code
from kdalign.errors import UsageError


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
        from kdalign.report.plots import check_figure

        check_figure(plot)
        if task is None:
            raise UsageError("--plot draws how alike layers are, which is measured on text: give --task and --data")
    if task is not None:
        from kdalign.data.tasks import check_named

        check_named(task, data, dataset, config)
    watcher = new_watcher()
    from kdalign.distillation.map_layers import CalibrationTexts, plan_layers

    reading = CalibrationTexts(task, data, dataset, config, examples, max_length) if task is not None else None
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
