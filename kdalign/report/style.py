"""The style of every Rich table and of the footnotes below it."""

from rich import box
from rich.table import Table
from rich.text import Text

from kdalign.errors import shorten
from kdalign.report.screen import plain_text

LONGEST_NOTE = 2000
"""Characters of a footnote; a layer map or a list that a user gave may have thousands more."""


def new_table(title: str | None = None) -> Table:
    """Make a Rich table in the common style."""
    return Table(
        title=None if title is None else plain_text(title),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        title_style="bold",
    )


def note_line(note: str) -> Text:
    """Format a footnote, shortened if it is very long."""
    return plain_text(f"· {shorten(note, LONGEST_NOTE)}", style="dim")
