"""`kdalign profile`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import error_console, show, tell
from kdalign.cli.options import AllowCode, Device, Json, RecipeSource, trust_code, with_options
from kdalign.errors import UsageError, unknown
from kdalign.recipe.flags import pick_flags

_PANEL = "Forecast of a run"
_RECIPE = pick_flags("teacher student set", _PANEL)


@dataclass(frozen=True)
class MeasureOptions:
    """Options that say what is measured and shown of models."""

    seq_len: Annotated[
        str | None, typer.Option(help="Lengths in tokens, separated by commas. Default 128; images have none.")
    ] = None
    batch_size: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Examples per batch, for throughput and memory.")
    ] = 32
    device: Device = "auto"
    dtype: Annotated[str, typer.Option(help="Precision of the timed models: fp32 or bf16.")] = "fp32"
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Read configurations only; nothing is timed.")] = (
        False
    )
    layers: Annotated[bool, typer.Option("--layers", help="Also show each layer's parameters and FLOPs.")] = False
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the costs: .png, .svg or .pdf.")] = None
    revision: Annotated[str | None, typer.Option(help="The first model's revision on the hub.")] = None

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The lengths in tokens; None if none are given.

        Raises:
            UsageError: a word that is not a length.
        """
        if self.seq_len is None:
            return None
        words = [word.strip() for word in self.seq_len.split(",")]
        if not all(re.fullmatch("[1-9][0-9]{0,6}", word) for word in words):
            raise UsageError(
                f"--seq-len {self.seq_len!r}: accepted are lengths up to 9999999 separated by commas, such as 128,512"
            )
        return tuple(int(word) for word in words)


@dataclass(frozen=True)
class ForecastOptions:
    """Options that say which run is forecast, and on what."""

    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            help="Forecast a recipe's run from configurations alone: memory of a rank, tokens/s, hours, communication.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    ranks: Annotated[
        int | None,
        typer.Option(min=1, max=10**6, help="Processes that train together. Default 1.", rich_help_panel=_PANEL),
    ] = None
    device_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Each rank's GPU by name, such as h100, h200, a100 or l40s; without one, this machine is measured.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    peak_tflops: Annotated[
        float | None,
        typer.Option(help="Peak of a device's products, 10^12 operations a second.", rich_help_panel=_PANEL),
    ] = None
    memory_gb: Annotated[float | None, typer.Option(help="Memory of a device, 10^9 bytes.", rich_help_panel=_PANEL)] = (
        None
    )
    memory_bandwidth: Annotated[
        float | None, typer.Option(help="Bandwidth of that memory, GB/s.", rich_help_panel=_PANEL)
    ] = None
    bandwidth: Annotated[
        float | None, typer.Option(help="Bandwidth from a rank to the others, GB/s.", rich_help_panel=_PANEL)
    ] = None
    efficiency: Annotated[
        float | None,
        typer.Option(
            help="Share of the peak that is assumed, above 0, at most 1. Default 0.4.", rich_help_panel=_PANEL
        ),
    ] = None

    def check(self) -> None:
        """Refuse numbers that no device has.

        Raises:
            UsageError: the option, and what is accepted.
        """
        for name in ("peak_tflops", "memory_gb", "memory_bandwidth", "bandwidth", "efficiency"):
            value, most = getattr(self, name), 1 if name == "efficiency" else 10**9
            if value is not None and not 0 < value <= most:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {value:g}: accepted is a number above 0, at most {most:,}")


@app.command(
    epilog=examples(
        "kdalign profile ./teacher runs/mine",
        "kdalign profile ./teacher ./student --seq-len 128,512 --no-weights",
        "kdalign profile ./teacher runs/mine --layers --plot costs.png",
        "kdalign profile --plan recipe.yaml",
        "kdalign profile --plan recipe.yaml --ranks 8 --device-name h100 --set train.sharding=fsdp2",
    )
)
@with_options
def profile(
    measured: MeasureOptions,
    forecast: ForecastOptions,
    source: Annotated[RecipeSource, _RECIPE],
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Hub ids, folders or runs.")] = None,
    allow: AllowCode = None,
    as_json: Json = False,
) -> None:
    """Compare the costs of models, or forecast those of a recipe's run.

    Of models: layers, parameters, FLOPs, memory, measured latency and throughput. Of a run (--plan): memory of each
    rank by part, tokens a second and hours by the roofline, and communication, without weights. A run that does not fit
    in a device's memory is said so, and the exit code is 0 nevertheless; in a script, read "fits" of --json.
    """
    if forecast.plan is not None:
        if models or measured != MeasureOptions():
            raise UsageError(
                "--plan takes models, lengths and precision from the recipe: leave out all else of profile"
            )
        trust_code(allow, source.code)
        _forecast(forecast, source, as_json)
        return
    if forecast != ForecastOptions() or source.flags or source.sets or allow:
        raise UsageError("options of a forecast (--ranks, --device-name, --teacher, ...) are for --plan RECIPE")
    if not models:
        raise UsageError("name a model, or a recipe by --plan")
    lengths, dtype, plot, revision = measured.lengths, measured.dtype, measured.plot, measured.revision
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

    show(profile_table(profiles, measured.layers))


def _forecast(given: ForecastOptions, source: RecipeSource, as_json: bool) -> None:
    given.check()
    from kdalign.recipe import build_recipe

    recipe = build_recipe(given.plan, source.flags, source.sets)
    from kdalign.distillation.forecast import EFFICIENCY, forecast
    from kdalign.models.hardware import describe_hardware

    hardware = describe_hardware(
        given.device_name, given.peak_tflops, given.memory_gb, given.memory_bandwidth, given.bandwidth
    )
    with error_console().status("counting"):
        found = forecast(recipe, given.ranks or 1, hardware, given.efficiency or EFFICIENCY)
    from kdalign.report.forecast import forecast_json, forecast_table

    if as_json:
        print(json.dumps(forecast_json(found), indent=2))
    else:
        show(forecast_table(found))
