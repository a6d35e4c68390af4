"""Output of the command line: tables to stdout, progress and errors to stderr."""

import io
import os
from typing import TYPE_CHECKING

from kdalign.environment import rank

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdalign.report.progress import ConsoleObserver
    from kdalign.report.screen import Screen


def error_console() -> "Screen":
    """Open a console on stderr."""
    from kdalign.report.screen import Screen

    return Screen(stderr=True)


def tell(line: str) -> None:
    """Print a line on stderr, unwrapped and without markup."""
    from kdalign.report.screen import plain_text

    error_console().print(plain_text(line), highlight=False, soft_wrap=True)


def new_watcher() -> "ConsoleObserver":
    """Build the observer of a command; shows a status while torch is loaded, which takes seconds."""
    console = error_console()
    with console.status("loading"):
        from kdalign.report.progress import ConsoleObserver

        quiet_libraries()
    return ConsoleObserver(console, silent=bool(rank()))


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of Transformers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def show(renderable: "RenderableType") -> None:
    """Print a result on the first rank's stdout, as wide as the terminal or 100 columns in a pipe."""
    if rank():
        return
    if isinstance(renderable, str):
        print(renderable, end="" if renderable.endswith("\n") else "\n")
        return
    from kdalign.report.screen import Screen

    console = Screen()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Screen(width=100)
    console.print(renderable, highlight=False, soft_wrap=False)


FILE_WIDTH = 200
"""Characters per line in a file."""


def as_text(renderable: "RenderableType") -> str:
    """Render a result for a file, with room for wide tables."""
    if isinstance(renderable, str):
        return renderable if renderable.endswith("\n") else renderable + "\n"
    from kdalign.report.screen import Screen

    buffer = io.StringIO()
    Screen(file=buffer, width=FILE_WIDTH).print(renderable, highlight=False)
    return buffer.getvalue()
