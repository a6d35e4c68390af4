"""Progress of a run: a bar on a terminal, plain lines if stderr is piped, and the run's log."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from kdalign.errors import printable, shorten
from kdalign.files import append_bounded
from kdalign.observer import ProgressCallback, StepReport
from kdalign.recipe import TERM_FACTS
from kdalign.report.screen import plain_text
from kdalign.report.style import new_table

if TYPE_CHECKING:
    from kdalign.distillation.ablation_runner import AblationProgress

PLAIN_EVERY = 10.0
"""Seconds between plain progress lines."""

LARGEST_LOG = 8 * 2**20
"""Bytes of a log; one that is full is kept as ``log.1.txt`` until the next one is."""
LONGEST = 1000
"""Characters of an announced or logged line; a plan or a list that a user gave may have thousands more."""

_SHORT = {name: facts.short for name, facts in TERM_FACTS.items() if facts.short}


class ConsoleObserver:
    """Observer that shows announcements and steps on stderr; ``silent`` (ranks after the first) shows nothing."""

    def __init__(self, console: Console, silent: bool = False) -> None:
        console.quiet = silent
        self._console = console
        self._log: Path | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._what = ""
        self._shown = 0.0
        self._samples: Mapping[str, float] = {}

    def announce(self, line: str) -> None:
        """Show a line, and write it to the run's log."""
        self._print(line)
        self._write(line)

    def started(self, what: str, step: int, steps: int, tokens: int | None = None) -> None:
        """Show the bar, or a line that training starts."""
        self._what, self._samples = what, {}
        self._shown = time.monotonic()
        whole = f"{steps:,} steps" if tokens is None else f"{tokens:,} tokens, about {steps:,} steps"
        line = f"{what}: {whole}" + (f", resumed after step {step:,}" if step else "")
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                console=self._console,
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(escape(what), total=steps, completed=step, speed="")
            self._bar.start()
        else:
            self._print(line)
        self._write(line)

    def stepped(self, report: StepReport) -> None:
        """Advance the bar, or print a line every few seconds; the last on-policy step's samples stay visible."""
        self._samples = report.on_policy or self._samples
        report = replace(report, on_policy=self._samples)
        if self._bar is not None:
            terms = " ".join(f"{_SHORT.get(name, name)} {value:.3f}" for name, value in report.parts.items())
            terms += f"\n{format_samples(report.on_policy)}" if report.on_policy else ""
            speed = f"{report.samples_per_second:,.0f} samples/s {report.tokens_per_second:,.0f} tok/s"
            left = f"loss {report.loss:.3f}\n{_left(report)}"
            self._bar.update(self._task, completed=report.step, total=report.steps, speed=left)
            what = f"{self._what}: {report.task}" if report.task else self._what
            self._bar.update(self._task, description=escape(f"{what}\n{speed}\n{terms}"))
        last = report.step == report.steps
        if time.monotonic() - self._shown < PLAIN_EVERY and not last:
            return
        self._shown = time.monotonic()
        line = format_step(report)
        self._write(line)
        if self._bar is None:
            self._print(line)

    def progress(self, what: str) -> ProgressCallback:
        """Show progress without steps: a bar with the rate and the time left, or a line every few seconds."""
        begun, shown = time.monotonic(), time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            left = _minutes((now - begun) * (total - done) / max(done, 1))
            left = f"{done / max(now - begun, 1e-3):,.1f}/s, {left}"
            if self._console.is_terminal and not self._console.quiet:
                if self._bar is None:
                    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]} left"))
                    self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
                    self._task = self._bar.add_task(escape(what), total=total, left=left)
                    self._bar.start()
                self._bar.update(self._task, completed=done, total=total, left=left)
                if done >= total:
                    self.ended()
            elif now - shown >= PLAIN_EVERY and done < total:
                shown = now
                line = f"{what}: {100 * done / total:.0f} %, {left} left"
                self._print(line)

        return tell

    @contextmanager
    def filling(self) -> Iterator[Callable[["AblationProgress"], None]]:
        """Show an ablation on a terminal as a table that fills; elsewhere its announcements are enough."""
        if not self._console.is_terminal or self._console.quiet:
            yield lambda state: None
            return
        with Live(console=self._console, transient=True, refresh_per_second=2) as live:
            yield lambda state: live.update(_ablation_table(state))

    def ended(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def into(self, log: Path) -> Self:
        """Log to this file from now on."""
        self._log = log
        return self

    def _print(self, line: str) -> None:
        self._console.print(plain_text(shorten(line, LONGEST)), highlight=False, soft_wrap=True)

    def _write(self, line: str) -> None:
        if self._log is not None:
            shown = shorten(printable(line), LONGEST)
            line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {shown}\n"
            append_bounded(self._log, line, LARGEST_LOG)


def _ablation_table(state: "AblationProgress") -> RenderableType:
    """The means so far, arm by task, and the runs in progress."""
    tasks = list(dict.fromkeys(trial.task for trial in state.trials))
    table = new_table()
    table.add_column(f"{len(state.done)} of {len(state.trials)} runs")
    for task in tasks:
        table.add_column(plain_text(task), justify="right")
    for arm in dict.fromkeys(trial.arm for trial in state.trials):
        cells = []
        for task in tasks:
            wanted = sum((trial.arm, trial.task) == (arm, task) for trial in state.trials)
            found = [one.record for one in state.done if (one.trial.arm, one.trial.task) == (arm, task)]
            values = [next(iter(record.scores.values()))["student"][0]["value"] for record in found]
            known = [value for value in values if value is not None]
            mean = "undefined " if len(known) < len(values) else f"{sum(known) / len(known):.1f} " if known else ""
            cells.append(Text.assemble(mean, (f"{len(found)}/{wanted}", "dim")))
        table.add_row(plain_text(arm), *cells)
    lines = [f"{trial.name}: {_last_line(Path(str(trial.recipe.out)))}" for trial, _ in state.running.values()]
    if state.seconds_left is not None:
        lines.append(f"about {_minutes(state.seconds_left)} left")
    return Group(table, *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines))


def _last_line(run: Path) -> str:
    """The last line of a run's log, without its time."""
    log = run / "log.txt"
    if not log.is_file():
        return "loading"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-1].partition(" ")[2] if lines else "loading"


def format_step(report: StepReport) -> str:
    """Format a step as a line of text."""
    terms = " ".join(f"{name} {value:.4f}" for name, value in report.parts.items())
    of = f" {report.task}" if report.task else ""
    about = "" if report.tokens_left is None else "~"
    place = f"pass {report.passes}" if report.passes else f"epoch {report.epoch:.2f}"
    return (
        f"step {report.step}/{about}{report.steps}{of} {place} loss {report.loss:.4f} {terms} "
        f"{report.samples_per_second:.0f} samples/s {report.tokens_per_second:.0f} tokens/s "
        f"{_sampling(report)}{_left(report)}"
    )


def _left(report: StepReport) -> str:
    """The time that is left, and the tokens if these decide."""
    tokens = "" if report.tokens_left is None else f"{report.tokens_left:,} tokens, "
    return f"{tokens}{_minutes(report.seconds_left)} left"


def _sampling(report: StepReport) -> str:
    """The speed of sampling and of training without it, and the step's samples; empty without on-policy steps."""
    if not report.sampled_per_second:
        return ""
    speed = f"(sampling {report.sampled_per_second:.0f}, training {report.trained_per_second:.0f}) "
    return speed + (f"{format_samples(report.on_policy)}; " if report.on_policy else "")


def format_samples(measures: Mapping[str, float]) -> str:
    """Format the measures of the student's own texts in one step."""
    parts = [
        f"own texts: {measures['length']:.0f} tokens",
        f"{measures['ended']:.0%} end",
        f"{measures['repeated']:.0%} repeated",
        f"{measures['distinct']:.0%} distinct",
    ]
    if "likelihood" in measures:
        parts.append(f"teacher {measures['likelihood']:.2f} nats/token")
    if "outside" in measures:
        parts.append(f"{measures['outside']:.0%} outside its entries")
    return ", ".join(parts)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
