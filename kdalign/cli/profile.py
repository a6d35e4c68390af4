"""`kdalign profile`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import error_console, show, tell
from kdalign.cli.options import Device, Json, with_options
from kdalign.errors import UsageError, unknown


@dataclass(frozen=True)
class MeasureOptions:
    """Options that say what is measured."""

    seq_len: Annotated[str, typer.Option(help="Lengths in tokens, separated by commas.")] = "128"
    batch_size: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Examples per batch, for throughput and memory.")
    ] = 32
    device: Device = "auto"
    dtype: Annotated[str, typer.Option(help="Precision of the timed models: fp32 or bf16.")] = "fp32"
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Read configurations only; nothing is timed.")] = (
        False
    )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths in tokens.

        Raises:
            UsageError: a word that is not a length.
        """
        words = [word.strip() for word in self.seq_len.split(",")]
        if not all(re.fullmatch("[1-9][0-9]{0,6}", word) for word in words):
            raise UsageError(
                f"--seq-len {self.seq_len!r}: accepted are lengths up to 9999999 separated by commas, such as 128,512"
            )
        return tuple(int(word) for word in words)


@app.command(
    epilog=examples(
        "kdalign profile ./teacher runs/mine",
        "kdalign profile ./teacher ./student --seq-len 128,512 --no-weights",
        "kdalign profile ./teacher runs/mine --layers --plot costs.png",
    )
)
@with_options
def profile(
    measured: MeasureOptions,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Hub ids, folders or runs.")],
    layers: Annotated[bool, typer.Option("--layers", help="Also show each layer's parameters and FLOPs.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the costs: .png, .svg or .pdf.")] = None,
    revision: Annotated[str | None, typer.Option(help="The first model's revision on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Compare the costs of models: layers, parameters, FLOPs, memory, measured latency and throughput."""
    lengths, dtype = measured.lengths, measured.dtype
    if dtype not in ("fp32", "bf16"):
        raise unknown("--dtype", dtype, ("fp32", "bf16"))
    if plot is not None:
        from kdalign.report.plots import check_figure

        check_figure(plot)
    from kdalign.models.profiling import profile_models

    timed = not measured.no_weights
    with error_console().status("measuring"):
        profiles = profile_models(models, lengths, measured.batch_size, measured.device, timed, revision, dtype)
    if plot is not None:
        from kdalign.report.plots import draw_costs

        draw_costs(profiles, plot)
        tell(f"picture: {plot}")
    if as_json:
        print(json.dumps([each.to_json() for each in profiles], indent=2))
        return
    from kdalign.report.profile import profile_table

    show(profile_table(profiles, layers))
