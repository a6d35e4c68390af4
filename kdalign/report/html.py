"""A comparison as one self-contained HTML file: tables, footnotes, plots, examples, recipes and commands.

Jinja escapes all names, and the content security policy lets the browser fetch nothing and run only the page's own
script. Plots are SVG, or PNG if that is smaller.
"""

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdalign.comparison.table import ComparisonTable, clean_text
from kdalign.data.media.images import decode_image
from kdalign.data.media.rows import MediaItem
from kdalign.errors import UsageError, printable
from kdalign.recipe.command import distill_command
from kdalign.report.layout import table_layouts
from kdalign.report.plots import NamedFigure, figures_of
from kdalign.report.plots.figure import INK, plot_style, without_markup
from kdalign.report.waveform import draw_waveform
from kdalign.runs.differing_transcripts import Evaluation, find_differing_transcripts
from kdalign.runs.disagreements import Disagreements, Read, find_disagreements
from kdalign.runs.finished import FinishedRun
from kdalign.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "page.html.jinja"
SMALL_SVG = 60_000
"""Characters up to which a plot stays SVG without trying PNG."""
THUMBNAIL = 96
"""Pixels of the longer side of an example's image."""
LONGEST_TEXT = 400
"""Characters of an example's text that are shown."""


@dataclass(frozen=True)
class _RunSection:
    """A run's section of the page.

    Attributes:
        command: the command that repeats the run, flag by flag.
    """

    name: str
    summary: str
    command: tuple[str, ...]
    facts: Mapping[str, str]
    recipe: str


def render_html(
    comparison: ComparisonTable,
    runs: Sequence[FinishedRun],
    transpose: bool = False,
    evaluations: Sequence[Evaluation] = (),
) -> str:
    """Render the page.

    Args:
        comparison: the table.
        runs: its finished runs, for plots, examples and recipes.
        transpose: true shows metrics as rows.
        evaluations: evaluations of models, for what they wrote.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kdalign.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_printable,
    )
    environment.filters["cut"] = _cut
    environment.filters["picture"] = _picture
    comparison = clean_text(comparison)
    source, *_ = PackageLoader("kdalign.report").get_source(environment, TEMPLATE)
    models = [row for row in comparison.rows if row.kind not in ("reference", "difference")]
    tables = table_layouts(comparison, transpose)
    read: Read = {}
    found = [
        find_disagreements(run, read=read) or find_differing_transcripts(run, evaluations, read=read) for run in runs
    ]
    differing = [disagreements for disagreements in found if disagreements is not None]
    return environment.get_template(TEMPLATE).render(
        script=_script_hash(source),
        title=_title(len(models), runs),
        version=__version__,
        runs=[_run_section(run) for run in runs],
        tables=tables,
        ranked=any(cell.best for table in tables for row in table.cells for cell in row),
        notes=comparison.notes,
        pictures=[(picture, _inline(picture)) for picture in figures_of(comparison, runs)],
        differing=differing,
        without_texts=_without_texts(differing),
    )


def _printable(value: object) -> object:
    """Remove control characters and marks of writing direction from a value of the page, line by line."""
    if not isinstance(value, str) or (value.isascii() and value.isprintable()):
        return value
    return type(value)("\n".join(map(printable, value.split("\n"))))


def _script_hash(source: str) -> str:
    """Hash of the page's script for the content security policy."""
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _title(count: int, runs: Sequence[FinishedRun]) -> str:
    tasks = ", ".join(dict.fromkeys(run.record.task for run in runs))
    return f"{count} model{'s' if count != 1 else ''} compared{f' on {tasks}' if tasks else ''}"


def _run_section(run: FinishedRun) -> _RunSection:
    record = run.record
    environment = dict(record.environment)
    libraries = environment.pop("libraries", {})
    teacher = record.served_teacher or "none"
    if record.teacher is not None:
        size = f"{record.teacher.parameters / 1e6:,.1f} M parameters"
        teacher = f"{record.teacher.source} [{record.teacher.revision}], {size}"
    facts = {
        "made": f"{record.created}, in {record.seconds:,.0f} s, by kdalign {record.version}",
        "student": f"{record.student.source}, {record.student.parameters / 1e6:,.1f} M parameters",
        "teacher": teacher,
        "data": str(record.data.get("source", "")),
        **{key: str(value) for key, value in environment.items()},
        "libraries": ", ".join(f"{name} {version}" for name, version in libraries.items()),
    }
    steps = record.training["steps"]
    return _RunSection(
        name=run.name,
        summary=f"{record.task}, seed {run.recipe.train.seed}, {steps:,} steps",
        command=tuple(re.split(r" (?=--)", distill_command(run.recipe))),
        facts={key: value for key, value in facts.items() if value},
        recipe=run.recipe.dump(),
    )


def _without_texts(differing: Sequence[Disagreements]) -> bool:
    return any(example for found in differing for example in found.examples if not example.texts)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _picture(item: MediaItem) -> "Markup":
    """Draw an image or a sound into the page; empty if it cannot be read any more."""
    return draw_waveform(item) if item.rows.modality == "audio" else _thumbnail(item)


def _thumbnail(item: MediaItem) -> "Markup":
    from markupsafe import Markup
    from PIL import Image

    try:
        picture = Image.fromarray(decode_image(item.read(), item.name))
    except UsageError:
        return Markup()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    pixels = io.BytesIO()
    picture.save(pixels, format="png")
    png = base64.b64encode(pixels.getvalue()).decode()
    return Markup('<img class="thumbnail" alt="{}" src="data:image/png;base64,{}"><br>').format(_cut(item.name), png)


@plot_style
def _inline(picture: NamedFigure) -> "Markup":
    """Embed a plot: SVG with text and axes in the page's colour, or PNG if that is smaller."""
    import matplotlib
    from markupsafe import Markup, escape

    drawn = io.StringIO()
    without_markup(picture.figure)
    with matplotlib.rc_context({"svg.hashsalt": picture.name}):  # ids of parts differ from plot to plot
        picture.figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = _lean(drawn.getvalue(), str(escape(printable(picture.alternative))))
    if len(svg) > SMALL_SVG:
        pixels = io.BytesIO()
        picture.figure.set_layout_engine("none")  # the layout is done, and takes as long as drawing
        picture.figure.savefig(pixels, format="png", dpi=160)
        png = base64.b64encode(pixels.getvalue()).decode()
        if len(png) < len(svg):
            return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(printable(picture.alternative), png)
    return Markup(svg)  # nosec B704 # Matplotlib escapes all texts in it


def _lean(svg: str, alternative: str) -> str:
    """Strip Matplotlib's SVG of what a page has or forbids: prologue, comments, metadata, styles, unused ids."""
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>", r' xmlns(?::\w+)?="[^"]*"'):
        svg = re.sub(pattern, "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    svg = re.sub(r"(-?\d+\.\d{2})\d+", r"\1", svg)  # a hundredth of a point
    svg = re.sub(r"\n\s*", "\n", svg).replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{alternative}"', 1)
