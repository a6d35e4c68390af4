"""A run in figures before it is made: tables of a rank's memory and of a step's time."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line

if TYPE_CHECKING:
    from kdalign.distillation.forecast import Forecast

COMPUTED = (
    "computed, not run: time of a roofline, the slowest of operations, memory and communication; loading, evaluation "
    "and checkpoints come on top",
    "operations: counted by torch with eager attention, 2 per multiply-add; causal attention counts in full",
)


def forecast_table(forecasts: Sequence["Forecast"]) -> RenderableType:
    """Render forecasts of one run for each task."""
    return Group(*(part for forecast in forecasts for part in _parts(forecast)))


def forecast_json(forecasts: Sequence["Forecast"]) -> list[dict[str, Any]]:
    """Return forecasts as plain dictionaries."""
    return [
        asdict(forecast)
        | {
            "memory": {
                "phase": forecast.memory.phase,
                "phases": {
                    phase: {str(part): size for part, size in parts.items() if size}
                    for phase, parts in forecast.memory.phases.items()
                },
                "total": forecast.memory.total,
                "missing": forecast.memory.missing,
            },
            "time": asdict(forecast.time) | {"seconds": forecast.time.seconds},
            "fits": forecast.fits,
            "tokens_per_step": forecast.tokens_per_step,
            "tokens_per_second": forecast.tokens_per_second,
            "hours": forecast.hours,
        }
        for forecast in forecasts
    ]


def _parts(forecast: "Forecast") -> Iterator[RenderableType]:
    yield _memory_table(forecast)
    table = new_table(f"{forecast.task}: a step, and the run")
    table.add_column("")
    table.add_column("", justify="right")
    for label, value in _lines(forecast):
        table.add_row(plain_text(label), plain_text(value))
    yield table
    yield from map(note_line, (*forecast.notes, *COMPUTED))
    yield Text("")


def _memory_table(forecast: "Forecast") -> RenderableType:
    """A rank's memory by part in every phase of the run, the parts of the largest first."""
    memory, hardware = forecast.memory, forecast.hardware
    table = new_table(f"{forecast.task}: GB of each of {forecast.ranks} rank{'s' * (forecast.ranks > 1)}")
    table.add_column("")
    for phase in memory.phases:
        table.add_column(plain_text(phase), justify="right")
    parts = dict.fromkeys(part for each in memory.phases.values() for part, size in each.items() if size)
    for part in sorted(parts, key=lambda part: -max(each.get(part, 0) for each in memory.phases.values())):
        table.add_row(plain_text(str(part)), *(_gigabytes(each.get(part, 0)) for each in memory.phases.values()))
    table.add_section()
    table.add_row("together", *(_gigabytes(sum(each.values())) for each in memory.phases.values()))
    fits = "fits in" if forecast.fits else "does not fit in"
    table.add_row(plain_text(f"{fits} the memory of {hardware.name}"), f"{hardware.memory / 1e9:,.2f}")
    return table


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f}" if size else ""


def _lines(forecast: "Forecast") -> Iterator[tuple[str, str]]:
    rows, time, hardware = forecast.rows, forecast.time, forecast.hardware
    for name, size in (*forecast.teachers.items(), forecast.student):
        yield f"parameters of {name} (M)", f"{size / 1e6:,.1f}"
    yield "sharding, precision", f"{forecast.sharding}, {forecast.precision}"
    unit = "image" if rows.modality == "image" else "token"
    if rows.modality != "image":
        yield (
            "tokens of a row, mean" if rows.modality == "text" else "tokens of a transcript, mean",
            f"{rows.tokens:,.1f}",
        )
    yield "rows of a step, of a rank's micro-batch", f"{rows.batch:,.0f}, {rows.micro_batch:,}"
    of_teacher, of_student = forecast.teacher_flops / 1e9, forecast.student_flops / 1e9
    yield f"GFLOP per {unit}: teacher, student", f"{of_teacher:,.2f}, {of_student:,.2f}"
    peak = f"{hardware.flops / 1e12:,.2f}"
    yield f"peak of {hardware.name}{', measured' * hardware.measured} (TFLOP/s)", peak
    yield "assumed share of the peak", f"{forecast.efficiency:.0%}"
    yield "seconds of a step: operations", f"{time.compute:,.3f}"
    yield f"  {time.traffic / 1e9:,.2f} GB of weights and moments", _seconds(time.memory)
    yield f"  {time.sent / 1e9:,.2f} GB sent to other ranks", _seconds(time.communication)
    yield f"{unit}s a second, all ranks", f"{forecast.tokens_per_second:,.0f}"
    yield "steps", "–" if forecast.steps is None else f"{forecast.steps:,.0f}"
    total = None if forecast.steps is None else forecast.steps * forecast.tokens_per_step
    yield f"{unit}s of the run (M)", "–" if total is None else f"{total / 1e6:,.1f}"
    yield "hours", "–" if forecast.hours is None else f"{forecast.hours:,.2f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3f}"
