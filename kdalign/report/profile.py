"""Profiles of models as Rich tables: size, memory, FLOPs and speed, with ratios to the first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table

from kdalign.data.media.rows import describe_input
from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line

if TYPE_CHECKING:
    from kdalign.models.profiling import Profile


def profile_table(profiles: Sequence["Profile"], layers: bool = False) -> RenderableType:
    """Render profiles side by side, with each model's ratio to the first.

    Args:
        profiles: one for each model, measured on the same lengths.
        layers: true adds a table of each model's parts.
    """
    table = new_table()
    table.add_column("")
    for number, profile in enumerate(profiles):
        table.add_column(plain_text(profile.name), justify="right", overflow="fold")
        if number:
            table.add_column("ratio", justify="right")
    types = [plain_text(text) for profile in profiles for text in (profile.model_type, "")]
    del types[1:2]  # the first model has no ratio
    table.add_row("model type", *types)
    for line in (*_size_lines(profiles), *_flop_lines(profiles), *_timing_lines(profiles)):
        table.add_row(line.label, *line.cells())
    for column in table.columns[1:]:  # a name may be folded, a number may not
        column.min_width = max(len(cell) for cell in column.cells if isinstance(cell, str))
    parts = [_parts_table(profile) for profile in profiles] if layers else []
    return Group(table, *parts, *map(note_line, [*_footnotes(profiles[0]), *_speech_notes(profiles)]))


@dataclass(frozen=True)
class _Line:
    """A line of the table: a quantity of every model.

    Attributes:
        form: format of a value, as in ``format``.
        ratio: false for shares, whose ratio says nothing.
    """

    label: str
    values: Sequence[float | None]
    form: str
    ratio: bool = True

    def cells(self) -> list[str]:
        """The values, each after the first followed by its ratio to the first."""
        base = self.values[0]
        cells = []
        for number, value in enumerate(self.values):
            cells.append("–" if value is None else format(value, self.form))
            if number:
                cells.append(f"{value / base:.2f}" if self.ratio and value is not None and base else "")
        return cells


def _size_lines(profiles: Sequence["Profile"]) -> Iterable[_Line]:
    yield _Line("layers", [p.layers for p in profiles], ",.0f")
    yield _Line("width", [p.width for p in profiles], ",.0f")
    yield _Line("attention heads", [p.heads for p in profiles], ",.0f")
    yield _Line("feed-forward width", [p.feed_forward for p in profiles], ",.0f")
    yield _Line("vocabulary", [p.vocabulary for p in profiles], ",.0f")
    yield _Line("parameters (M, tied once)", [p.parameters / 1e6 for p in profiles], ",.2f")
    yield _Line("  in the embeddings (M)", [p.embedding_parameters / 1e6 for p in profiles], ",.2f")
    yield _Line("on disk (MB)", [p.megabytes for p in profiles], ",.1f")
    precisions = list(profiles[0].weights_mb)
    for name in precisions:
        yield _Line(f"weights in {name} (MB)", [p.weights_mb[name] for p in profiles], ",.1f")
    yield _Line("training in fp32 (MB)", [p.training_mb for p in profiles], ",.1f")
    if any(p.cache_kb_per_token for p in profiles):
        for name in precisions:
            cache = [p.cache_kb_per_token.get(name) for p in profiles]
            yield _Line(f"cache per token in {name} (kB)", cache, ",.1f")


def flops_title(profile: "Profile", length: int) -> str:
    """Title of a forward's operations: for each token of this many, or for an image."""
    if profile.modality == "image":
        return "MFLOP per image"
    return f"MFLOP per token, {describe_input(profile.modality, length)}"


def _flop_lines(profiles: Sequence["Profile"]) -> Iterable[_Line]:
    for length in profiles[0].flops_per_token:
        forward = [p.flops_per_token[length] / 1e6 for p in profiles]
        quadratic = [100 * p.quadratic_share[length] for p in profiles]
        backward = [p.training_flops_per_token[length] / 1e6 for p in profiles]
        yield _Line(flops_title(profiles[0], length), forward, ",.2f")
        if profiles[0].modality != "image":
            yield _Line("  growing with length² (%)", quadratic, ",.1f", ratio=False)
        yield _Line("  with the backward pass", backward, ",.2f")


def _timing_lines(profiles: Sequence["Profile"]) -> Iterable[_Line]:
    for number, first in enumerate(profiles[0].timings):
        timed = [p.timings[number] for p in profiles]
        read = describe_input(profiles[0].modality, first.length)
        yield _Line(f"latency p50 (ms), {read}", [t.latency_ms for t in timed], ",.2f")
        yield _Line(f"latency p95 (ms), {read}", [t.latency_p95_ms for t in timed], ",.2f")
        label = f"examples/s, batch {first.batch_size}" + (f", {read}" if profiles[0].modality != "image" else "")
        yield _Line(label, [t.throughput for t in timed], ",.1f")
        yield _Line("  peak on top of the weights (MB)", [t.peak_mb for t in timed], ",.1f")
        yield _Line("  activations for training (MB)", [t.activations_mb for t in timed], ",.1f")
    speeds = [p.transcription for p in profiles]
    if any(speed is not None for speed in speeds):
        factors = [None if speed is None else speed.real_time_factor for speed in speeds]
        yield _Line("real-time factor", factors, ",.4f")


def _footnotes(first: "Profile") -> list[str]:
    notes = [
        "FLOPs: of one forward pass, counted by torch with eager attention, 2 per multiply-add, head included",
        "training: weights, gradients and AdamW's moments; activations come on top",
    ]
    if first.modality == "audio":
        notes.append("a sound: of the greatest length that the model reads (30 s for Whisper), encoded in each forward")
    if first.timings:
        notes += [
            f"times and peak: measured on {first.device} in {first.precision} after warm-up; latency at batch 1",
            "activations for training: what a forward pass in fp32 keeps for its backward pass",
        ]
    return notes


def _speech_notes(profiles: Sequence["Profile"]) -> list[str]:
    """Say what the real-time factors were measured on."""
    found = [profile.transcription for profile in profiles if profile.transcription is not None]
    if not found:
        return []
    sounds = " and ".join(dict.fromkeys(f"{speed.seconds:g} s" for speed in found))
    tokens = " or ".join(dict.fromkeys(f"exactly {speed.tokens} tokens" for speed in found if speed.tokens))
    turns = " and ".join(dict.fromkeys(str(speed.turns) for speed in found))
    notes = [
        f"real-time factor: seconds of work for each second of sound, decoding of the file included; noise of {sounds} "
        f"alone, transcribed greedily{f', {tokens}' if tokens else ''}; median of {turns}. eval measures its own on "
        f"the data, several sounds at a time"
    ]
    if len(found) < len(profiles):
        notes.append("no real-time factor: the model has no head that transcribes, or no feature extractor")
    return notes


def _parts_table(profile: "Profile") -> Table:
    """One model's parameters and FLOPs, part by part; neighbours with equal costs share a row."""
    table = new_table(profile.name)
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for length in profile.flops_per_token:
        table.add_column(flops_title(profile, length), justify="right")
    rows: list[tuple[list[str], list[str]]] = []
    for part in profile.parts:
        values = [f"{part.parameters:,}", *(f"{flops / 1e6:,.3f}" for flops in part.flops_per_token.values())]
        if rows and rows[-1][1] == values:
            rows[-1][0].append(part.name)
        else:
            rows.append(([part.name], values))
    for names, values in rows:
        last = names[-1].rpartition(".")[2]
        table.add_row(plain_text(names[0] if len(names) == 1 else f"{names[0]} to {last}, each"), *values)
    return table
