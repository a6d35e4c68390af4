"""`kdalign map-layers`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import new_watcher, show, tell
from kdalign.cli.options import Json, TaskOptions, trust_code, with_options
from kdalign.errors import UsageError


@dataclass(frozen=True)
class PairOptions:
    """Options that name the two models and the map between them."""

    teacher: Annotated[
        list[str], typer.Option(metavar="TEXT", help="Hub id or folder of the large model; repeatable for several.")
    ]
    student: Annotated[
        str, typer.Option(help="layers=N or layers=half, hub id, folder, or new:TYPE,layers=N,width=N.")
    ] = "layers=half"
    map: Annotated[
        str,
        typer.Option(
            help="auto, the name of a map, pairs such as '0:1 1:3 2:5'; by similarity: cka, emd, or your "
            "module:function; learned: a weighted mean of all layers.",
        ),
    ] = "auto"
    init: Annotated[str, typer.Option(help="Teacher layers that a cut student starts from.")] = "uniform"


@dataclass(frozen=True)
class TextOptions(TaskOptions):
    """Options that name texts for both models to read."""

    examples: Annotated[int, typer.Option(min=1, help="Number of texts, drawn at random from train.")] = 512
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Longest input in tokens. Default 128, or the models' positions.")
    ] = None
    revision: Annotated[str | None, typer.Option(help="The teacher's revision on the hub.")] = None


@dataclass(frozen=True)
class FileOptions:
    """Options that name files to write."""

    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan, for distill --plan.")] = None
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the layers' similarity: .png, .svg or .pdf.")
    ] = None

    def check(self, task: str | None) -> None:
        """Check the files before anything is read.

        Raises:
            UsageError: a file that cannot be written, or a picture without text to measure on.
        """
        if self.out is not None:
            from kdalign.files import check_file

            check_file(self.out)
        if self.plot is not None:
            from kdalign.report.plots import check_figure

            check_figure(self.plot)
            if task is None:
                raise UsageError("--plot draws similarities, which are measured on text: give --task and --data")


@app.command(
    epilog=examples(
        "kdalign map-layers --teacher ./teacher --student layers=3",
        "kdalign map-layers --teacher ./teacher --student ./narrow --map '0:1 1:3 2:5' --out plan.json",
        "kdalign map-layers --teacher ./teacher --student ./other --map cka --task sst2 --data ./sst2 --plot map.png",
    )
)
@with_options
def map_layers(pair: PairOptions, text: TextOptions, files: FileOptions, as_json: Json = False) -> None:
    """Show which teacher layer teaches which student layer, and the projections between them.

    With --task both models read some of its texts, and the similarity (CKA) of the layers is shown for every map.
    """
    trust_code((), (pair.map,))
    files.check(text.task)
    text.check([text.task] if text.task is not None else [])
    if text.task is None and (text.data or text.dataset or text.config):
        raise UsageError("data are read for the similarity of layers: give --task, too, or leave --data out")
    watcher = new_watcher()
    from kdalign.distillation.map_layers import CalibrationTexts, plan_layers

    texts = None
    if text.task is not None:
        texts = CalibrationTexts(text.task, text.data, text.dataset, text.config, text.examples, text.max_length)
    plan = plan_layers(tuple(pair.teacher), pair.student, pair.map, pair.init, text.revision, texts, watcher)
    if files.plot is not None:
        from kdalign.report.plots import draw_similarities

        draw_similarities(plan, files.plot)
        tell(f"picture: {files.plot}")
    if files.out is not None:
        from kdalign.files import write_text

        write_text(files.out, plan.to_json())
        tell(f"plan: {files.out}")
    if as_json:
        print(plan.to_json(), end="")
        return
    from kdalign.report.plan import plan_table

    show(plan_table(plan))
