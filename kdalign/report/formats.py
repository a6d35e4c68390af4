"""Output formats of a comparison table: terminal, Markdown, LaTeX, CSV, JSON, HTML."""

from pathlib import Path

from rich.console import RenderableType

from kdalign.comparison.table import ComparisonTable, clean_text
from kdalign.errors import UsageError, did_you_mean, unknown
from kdalign.report.flat import as_csv, as_json
from kdalign.report.latex import as_latex
from kdalign.report.layout import table_layouts
from kdalign.report.markdown import as_markdown
from kdalign.report.terminal import TerminalTables

FORMATS = ("rich", "markdown", "latex", "csv", "json")
ALL = (*FORMATS, "html")
"""The formats, with the HTML page (``report.html``), which is made from the runs as well."""
ENDINGS = {".txt": "rich", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html"}


def form_for(form: str | None, out: Path | None = None) -> str:
    """Choose the format by its name or a file's ending; the terminal's if neither is given.

    Raises:
        UsageError: an unknown name or ending.
    """
    if form is None and out is not None and out.suffix:
        ending = out.suffix.lower()
        if ending not in ENDINGS:
            near = did_you_mean(ending, ENDINGS)
            raise UsageError(f"--out {str(out)!r}: unknown ending {ending!r}{near} (accepted: {', '.join(ENDINGS)})")
        return ENDINGS[ending]
    if form is not None and form not in ALL:
        raise unknown("format", form, ALL)
    return form or "rich"


def comparison_as(comparison: ComparisonTable, form: str, transpose: bool = False) -> RenderableType:
    """Render a comparison; every format but the terminal's is a string, to be printed as it is.

    Args:
        comparison: the table.
        form: one of ``FORMATS``.
        transpose: metrics as rows, models as columns.

    Raises:
        UsageError: an unknown form.
    """
    comparison = clean_text(comparison)
    match form:
        case "rich":
            return TerminalTables(table_layouts(comparison, transpose), comparison.notes)
        case "markdown":
            return as_markdown(table_layouts(comparison, transpose), comparison.notes)
        case "latex":
            return as_latex(table_layouts(comparison, transpose), comparison.notes)
        case "csv":
            return as_csv(comparison, transpose)
        case "json":
            return as_json(comparison, transpose)
    raise unknown("format", form, FORMATS)
