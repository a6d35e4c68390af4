"""The style of every Rich table."""

from rich import box
from rich.table import Table

from kdalign.report.screen import plain_text

LONGEST_NOTE = 2000
"""Characters of a note: a map or a list that was given may have thousands more."""


def new_table(title: str | None = None) -> Table:
    """A Rich table in the house style."""
    return Table(
        title=None if title is None else plain_text(title),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        title_style="bold",
    )
