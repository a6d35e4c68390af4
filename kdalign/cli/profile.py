"""`kdalign profile`."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.console import error_console, show, tell
from kdalign.cli.options import Device, Json, app, examples
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
        from kdalign.report.plots import check_figure

        check_figure(plot)
    from kdalign.models.profiling import profile_models

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


def _lengths(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("[1-9][0-9]{0,6}", word) for word in words):
        raise UsageError(f"--seq-len {text!r}: accepted are lengths up to 9999999 separated by commas, such as 128,512")
    return tuple(int(word) for word in words)
