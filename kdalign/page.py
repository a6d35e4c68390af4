"""A comparison as one HTML file that needs nothing else: tables, notes, pictures, examples, recipes and commands.

Whatever a user has named is escaped by Jinja; pictures are drawn as SVG, or as PNG where that is smaller.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdalign.commands import distill_command
from kdalign.evidence import Disagreements, FinishedRun, disagreements
from kdalign.pictures import Picture, pictures_of
from kdalign.pictures.picture import INK, styled
from kdalign.table import Comparison
from kdalign.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

SMALL_SVG = 60_000
"""Characters up to which a picture is not drawn in pixels to see whether that is smaller."""
LONGEST_TEXT = 400
"""Characters of an example that are shown."""


@dataclass(frozen=True)
class _Table:
    """One of the page's tables, as in the JSON form of the comparison: columns and rows as plain dictionaries."""

    title: str
    columns: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Described:
    """A run's own part of the page; its command flag by flag."""

    name: str
    summary: str
    command: tuple[str, ...]
    facts: Mapping[str, str]
    recipe: str


def page(comparison: Comparison, runs: Sequence[FinishedRun]) -> str:
    """The whole file.

    Args:
        comparison: the table; its JSON form is what the page shows, number by number.
        runs: the finished runs in it, for pictures, examples and recipes.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kdalign"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": _number, "cut": _cut}
    tree = comparison.to_json()
    models = [row for row in tree["rows"] if row["kind"] != "reference"]
    differing = [found for run in runs if (found := disagreements(run)) is not None]
    return environment.get_template("page.html.jinja").render(
        title=_title(models, runs),
        version=__version__,
        models=models,
        runs=[_described(run) for run in runs],
        tables=_tables(tree),
        ranked=any(cell["best"] for row in models for cell in row["cells"].values()),
        notes=tree["notes"],
        pictures=[(picture, _inline(picture)) for picture in pictures_of(comparison, runs)],
        differing=differing,
        without_texts=_without_texts(differing),
    )


def _title(models: Sequence[Mapping[str, Any]], runs: Sequence[FinishedRun]) -> str:
    tasks = ", ".join(dict.fromkeys(run.record.task for run in runs))
    count = sum(row["kind"] != "difference" for row in models)
    return f"{count} model{'s' if count != 1 else ''} compared{f' on {tasks}' if tasks else ''}"


def _tables(tree: Mapping[str, Any]) -> list[_Table]:
    """Scores, what others have published, and costs; scores by task where no row is of several."""
    measured = [row for row in tree["rows"] if row["kind"] != "reference"]
    references = [row for row in tree["rows"] if row["kind"] == "reference"]
    scores = [column for column in tree["columns"] if not column["cost"] and not column["published"]]
    tasks = list(dict.fromkeys(column["task"] for column in scores if column["task"]))
    of = [{column["task"] for column in scores if column["task"] and column["key"] in row["cells"]} for row in measured]
    found = [("Scores", scores, [*measured, *references])]
    if len(tasks) > 1 and all(len(own) < 2 for own in of):
        found = [
            (f"Scores: {task}", scores, [row for row, own in zip(measured, of, strict=True) if own == {task}])
            for task in tasks
        ]
    published = [column for column in tree["columns"] if column["published"]]
    found.append(("Published, not measured here", published, references))
    found.append(("Costs", [column for column in tree["columns"] if column["cost"]], measured))
    tables = []
    for title, columns, rows in found:
        columns = [column for column in columns if any(column["key"] in row["cells"] for row in rows)]
        rows = [row for row in rows if any(column["key"] in row["cells"] for column in columns)]
        if rows:
            tables.append(_Table(title, columns, rows))
    return tables


def _described(run: FinishedRun) -> _Described:
    record = run.record
    environment = dict(record.environment)
    libraries = environment.pop("libraries", {})
    teacher = "none"
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
    return _Described(
        name=run.name,
        summary=f"{record.task}, seed {run.recipe.train.seed}, {steps:,} steps",
        command=tuple(re.split(r" (?=--)", distill_command(run.recipe))),
        facts={key: value for key, value in facts.items() if value},
        recipe=run.recipe.dump(),
    )


def _without_texts(differing: Sequence[Disagreements]) -> bool:
    return any(example for found in differing for example in found.examples if not example.texts)


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits if abs(value) < 1000 else 0}f}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


@styled
def _inline(picture: Picture) -> "Markup":
    """A picture as it stands in the page: SVG with words and axes in the page's colour, or PNG where it is smaller."""
    import matplotlib
    from markupsafe import Markup, escape

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": picture.name}):  # names of parts differ from picture to picture
        picture.figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = _lean(drawn.getvalue(), str(escape(picture.alternative)))
    if len(svg) > SMALL_SVG:
        pixels = io.BytesIO()
        picture.figure.savefig(pixels, format="png", dpi=160)
        png = base64.b64encode(pixels.getvalue()).decode()
        if len(png) < len(svg):
            return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(picture.alternative, png)
    return Markup(svg)


def _lean(svg: str, alternative: str) -> str:
    """Matplotlib's SVG without what a page has or forbids: prologue, comments, metadata, styles, unused names."""
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>", r' xmlns(?::\w+)?="[^"]*"'):
        svg = re.sub(pattern, "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    svg = re.sub(r"(-?\d+\.\d{2})\d+", r"\1", svg)  # a hundredth of a point
    svg = re.sub(r"\n\s*", "\n", svg).replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{alternative}"', 1)
